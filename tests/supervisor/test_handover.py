"""Which worker is told of a dead one, and when that is forgotten. Real pipes; nothing is forked."""

import os
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID, uuid4

import pytest

from webhookd.lifeline import death_line, parse_death_line
from webhookd.supervisor.child import Child
from webhookd.supervisor.handover import RELEASE_GRACE_S, Handover


class Recipient:
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
            return [parse_death_line(line) for line in os.read(self.lifeline, 65536).splitlines()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self.child.lifeline_fd)
        with suppress(OSError):
            os.close(self.lifeline)


@pytest.fixture
def recipient() -> Iterator[Recipient]:
    recipient = Recipient()
    yield recipient
    recipient.close()


def test_a_drained_worker_leaves_nothing_behind() -> None:
    handover = Handover()
    handover.on_exit(uuid4(), clean=True, heard=0.0)
    assert not handover.pending


def test_a_dead_worker_waits_until_a_recipient_is_told_and_is_told_of_once(
    recipient: Recipient,
) -> None:
    handover, dead = Handover(), uuid4()
    handover.on_exit(dead, clean=False, heard=0.0)
    handover.tell([], 0.0)
    assert handover.pending == (dead,)
    handover.tell([(recipient.child, 0.0)], 0.0)
    handover.tell([(recipient.child, 0.0)], 0.0)
    assert recipient.told() == [dead]
    assert not handover.pending


def test_a_recipient_whose_lifeline_is_broken_is_passed_over(recipient: Recipient) -> None:
    handover, dead = Handover(), uuid4()
    broken = Recipient(has_reader=False)
    handover.on_exit(dead, clean=False, heard=0.0)
    handover.tell([(broken.child, 0.0), (recipient.child, 0.0)], 0.0)
    assert recipient.told() == [dead]
    broken.close()


@pytest.mark.parametrize("clean", [True, False])
def test_what_a_recipient_was_told_is_remembered_until_it_has_lived_on_for_a_while(
    recipient: Recipient, clean: bool
) -> None:
    handover, dead = Handover(), uuid4()
    handover.on_exit(dead, clean=False, heard=0.0)
    handover.tell([(recipient.child, 100.0)], 100.0)
    handover.on_exit(recipient.child.incarnation, clean=clean, heard=100.0 + RELEASE_GRACE_S - 0.1)
    assert handover.pending == ((dead,) if clean else (dead, recipient.child.incarnation))


def test_what_a_recipient_has_surely_released_is_forgotten(recipient: Recipient) -> None:
    handover = Handover()
    handover.on_exit(uuid4(), clean=False, heard=0.0)
    handover.tell([(recipient.child, 100.0)], 100.0)
    handover.on_exit(recipient.child.incarnation, clean=False, heard=100.0 + RELEASE_GRACE_S)
    assert handover.pending == (recipient.child.incarnation,)


def test_a_long_silence_before_its_death_does_not_count_as_life(recipient: Recipient) -> None:
    handover, dead = Handover(), uuid4()
    handover.on_exit(dead, clean=False, heard=0.0)
    handover.tell([(recipient.child, 100.0)], 100.0)
    handover.on_exit(
        recipient.child.incarnation, clean=False, heard=100.5
    )  # hung since; killed much later
    assert dead in handover.pending


def test_a_new_worker_that_dies_before_its_first_beat_makes_pending_what_its_lifeline_named() -> (
    None
):
    handover, dead, replacement = Handover(), uuid4(), uuid4()
    handover.on_exit(dead, clean=False, heard=0.0)
    handover.on_start(replacement)
    assert not handover.pending
    handover.on_exit(replacement, clean=False, heard=1000.0)
    assert handover.pending == (dead, replacement)


def test_a_new_worker_s_time_to_release_begins_with_its_first_beat() -> None:
    for heard, expected in ((1000.0 + RELEASE_GRACE_S - 0.1, 2), (1000.0 + RELEASE_GRACE_S, 1)):
        handover, replacement = Handover(), uuid4()
        handover.on_exit(uuid4(), clean=False, heard=0.0)
        handover.on_start(replacement)
        handover.on_first_beat(replacement, 1000.0)
        handover.on_exit(replacement, clean=False, heard=heard)
        assert len(handover.pending) == expected


def test_the_lifeline_s_lines_are_read_as_they_are_written() -> None:
    incarnation = uuid4()
    assert parse_death_line(death_line(incarnation)) == incarnation
    with pytest.raises(ValueError, match="not a line"):
        parse_death_line(b"found " + str(incarnation).encode())
