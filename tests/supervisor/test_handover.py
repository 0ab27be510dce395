"""Who is told of a dead worker, and when that is forgotten. Real pipes; nothing is forked."""

import os
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID, uuid4

import pytest

from webhookd.lifeline import lost_line, parse_lost_line
from webhookd.supervisor.child import Child
from webhookd.supervisor.handover import RELEASE_GRACE_S, Handover


class Keeper:
    """A child without a process: its lifeline's other end is here."""

    def __init__(self, *, has_reader: bool = True) -> None:
        self.lifeline, write_fd = os.pipe()
        os.set_blocking(self.lifeline, False)
        os.set_blocking(write_fd, False)
        self.child = Child(0, "worker-1", uuid4(), 0, -1, write_fd)
        if not has_reader:
            os.close(self.lifeline)

    def told(self) -> list[UUID]:
        try:
            return [parse_lost_line(line) for line in os.read(self.lifeline, 65536).splitlines()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self.child.lifeline_fd)
        with suppress(OSError):
            os.close(self.lifeline)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


def test_a_drained_worker_leaves_nothing_behind() -> None:
    lost = Handover()
    lost.died(uuid4(), clean=True, heard=0.0)
    assert not lost.waiting


def test_a_dead_worker_waits_until_a_keeper_is_told_and_is_told_of_once(keeper: Keeper) -> None:
    lost, dead = Handover(), uuid4()
    lost.died(dead, clean=False, heard=0.0)
    lost.hand_over([], 0.0)
    assert lost.waiting == (dead,)
    lost.hand_over([(keeper.child, 0.0)], 0.0)
    lost.hand_over([(keeper.child, 0.0)], 0.0)
    assert keeper.told() == [dead]
    assert not lost.waiting


def test_a_keeper_whose_lifeline_is_broken_is_passed_over(keeper: Keeper) -> None:
    lost, dead = Handover(), uuid4()
    broken = Keeper(has_reader=False)
    lost.died(dead, clean=False, heard=0.0)
    lost.hand_over([(broken.child, 0.0), (keeper.child, 0.0)], 0.0)
    assert keeper.told() == [dead]
    broken.close()


@pytest.mark.parametrize("clean", [True, False])
def test_what_a_keeper_was_told_is_remembered_until_it_has_lived_on_for_a_while(
    keeper: Keeper, clean: bool
) -> None:
    lost, dead = Handover(), uuid4()
    lost.died(dead, clean=False, heard=0.0)
    lost.hand_over([(keeper.child, 100.0)], 100.0)
    lost.died(keeper.child.incarnation, clean=clean, heard=100.0 + RELEASE_GRACE_S - 0.1)
    assert lost.waiting == ((dead,) if clean else (dead, keeper.child.incarnation))


def test_what_a_keeper_has_surely_released_is_forgotten(keeper: Keeper) -> None:
    lost = Handover()
    lost.died(uuid4(), clean=False, heard=0.0)
    lost.hand_over([(keeper.child, 100.0)], 100.0)
    lost.died(keeper.child.incarnation, clean=False, heard=100.0 + RELEASE_GRACE_S)
    assert lost.waiting == (keeper.child.incarnation,)


def test_a_long_silence_before_its_death_does_not_count_as_life(keeper: Keeper) -> None:
    lost, dead = Handover(), uuid4()
    lost.died(dead, clean=False, heard=0.0)
    lost.hand_over([(keeper.child, 100.0)], 100.0)
    lost.died(keeper.child.incarnation, clean=False, heard=100.5)  # hung since; killed much later
    assert dead in lost.waiting


def test_a_new_worker_that_dies_before_its_first_beat_gives_back_what_its_seat_named() -> None:
    lost, dead, replacement = Handover(), uuid4(), uuid4()
    lost.died(dead, clean=False, heard=0.0)
    lost.started(replacement)
    assert not lost.waiting
    lost.died(replacement, clean=False, heard=1000.0)
    assert lost.waiting == (dead, replacement)


def test_a_new_worker_s_time_to_release_begins_with_its_first_beat() -> None:
    for heard, expected in ((1000.0 + RELEASE_GRACE_S - 0.1, 2), (1000.0 + RELEASE_GRACE_S, 1)):
        lost, replacement = Handover(), uuid4()
        lost.died(uuid4(), clean=False, heard=0.0)
        lost.started(replacement)
        lost.first_beat(replacement, 1000.0)
        lost.died(replacement, clean=False, heard=heard)
        assert len(lost.waiting) == expected


def test_the_lifeline_s_words_are_read_as_they_are_written() -> None:
    incarnation = uuid4()
    assert parse_lost_line(lost_line(incarnation)) == incarnation
    with pytest.raises(ValueError, match="not a word"):
        parse_lost_line(b"found " + str(incarnation).encode())
