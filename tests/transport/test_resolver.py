"""Lookups that hang, fail or come in crowds: what they cost other names, and for how long a name
is left alone.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.descriptors import crowded_out
from tests.support.transport import GUARD_S, resolving
from tests.support.waiting import eventually
from webhookd.core.answer import ShortageKind
from webhookd.core.lookups import MAX_LOOKUPS, RESERVED_LOOKUPS
from webhookd.transport import resolver as resolver_module
from webhookd.transport.resolver import (
    ANSWER_SHARED_S,
    HUNG_AFTER_S,
    MAX_NAMES,
    LookupFailed,
    Resolver,
)
from webhookd.transport.shortage import Shortage

Found = Sequence[tuple[int, int, int, str, tuple[object, ...]]]
ADDRESS = "192.0.2.1"


class Names:
    """A stand-in for `getaddrinfo`, and for the monotonic clock. Names hang that begin with
    `silent`, and their servers fail that begin with `failing`, until `heal`.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: Counter[str] = Counter()
        self.healed = threading.Event()

    def resolve(self, host: str, port: int, family: int, kind: int) -> Found:
        self.asked[host] += 1
        if host.startswith("silent") and not self.healed.wait(60):
            raise AssertionError("never healed")
        if host.startswith("failing") and not self.healed.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolving(ADDRESS)(host, port, family, kind)


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.healed.set()


@pytest.fixture
def resolver(names: Names) -> Resolver:
    return Resolver(names.resolve, clock=lambda: names.now)


def soon() -> float:
    """A deadline that has no time to wait for anything that hangs."""
    return time.monotonic() + 0.01


def later() -> float:
    return time.monotonic() + 20.0


def begin(resolver: Resolver, host: str) -> None:
    """Start the lookup of *host*, which hangs."""
    with pytest.raises(TimeoutError):
        resolver.addresses(host, deadline=soon())


# --- other names


def test_sixty_silent_names_do_not_keep_a_new_name_from_being_resolved(
    names: Names, resolver: Resolver
) -> None:
    for number in range(60):
        begin(resolver, f"silent.d{number}.test")
    began_at = time.monotonic()
    assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]
    assert time.monotonic() - began_at < GUARD_S


def test_however_many_are_silent_names_that_answered_before_are_resolved(
    names: Names, resolver: Resolver
) -> None:
    assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]
    for number in range(MAX_LOOKUPS - RESERVED_LOOKUPS):
        begin(resolver, f"silent.d{number}.test")
    with pytest.raises(Shortage) as refused:
        resolver.addresses("new.test", deadline=later())
    assert refused.value.kind is ShortageKind.LOOKUP
    names.now += ANSWER_SHARED_S
    assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]
    assert names.asked["good.test"] == 2
    names.healed.set()
    eventually(lambda: _resolves(resolver, "new.test"), what="the new name")


def _resolves(resolver: Resolver, host: str) -> bool:
    try:
        return bool(resolver.addresses(host, deadline=later()))
    except Shortage:
        return False


def test_silent_names_of_one_domain_hold_few_threads(names: Names, resolver: Resolver) -> None:
    assert resolver.addresses("good.wild.test", deadline=later()) == [ADDRESS]
    for number in range(4):
        begin(resolver, f"silent-{number}.wild.test")
    names.now += ANSWER_SHARED_S  # all of them are slow by now
    for number in range(4, 100):
        with pytest.raises(Shortage):
            resolver.addresses(f"silent-{number}.wild.test", deadline=later())
    assert sum(names.asked.values()) == 5
    assert resolver.addresses("good.wild.test", deadline=later()) == [ADDRESS]
    assert resolver.addresses("good.other.test", deadline=later()) == [ADDRESS]


# --- a name that hangs or fails


def test_a_name_whose_servers_fail_is_left_alone_for_pauses_that_grow_and_end(
    names: Names, resolver: Resolver
) -> None:
    for asked, pause_s in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0), start=1):
        with pytest.raises(LookupFailed, match=r"^DNS: temporary failure$"):
            resolver.addresses("failing.test", deadline=later())
        names.now += pause_s - 0.1
        with pytest.raises(
            LookupFailed,
            match=r"^DNS: temporary failure since \d\d:\d\d:\d\d UTC; "
            r"asked again at \d\d:\d\d:\d\d UTC$",
        ):
            resolver.addresses("failing.test", deadline=later())
        assert names.asked["failing.test"] == asked
        names.now += 0.1
    names.healed.set()
    assert resolver.addresses("failing.test", deadline=later()) == [ADDRESS]


def test_a_name_that_does_not_exist_is_asked_for_each_time(
    names: Names, resolver: Resolver
) -> None:
    for _ in range(3):
        with pytest.raises(LookupFailed, match="DNS: name not known"):
            resolver.addresses("unknown.test", deadline=later())
    assert names.asked["unknown.test"] == 3


def test_a_name_that_hangs_costs_nobody_time_once_that_is_known(
    names: Names, resolver: Resolver
) -> None:
    begin(resolver, "silent.test")
    names.now += HUNG_AFTER_S
    for waited_s in (0.0, 0.5, 30.0):
        names.now += waited_s
        began_at = time.monotonic()
        with pytest.raises(LookupFailed, match=r"^DNS: no answer since .*the lookup still runs$"):
            resolver.addresses("silent.test", deadline=later())
        assert time.monotonic() - began_at < GUARD_S
    assert names.asked["silent.test"] == 1
    # The answer that came late counts, and ends the trouble.
    names.healed.set()
    eventually(lambda: _answers(resolver, "silent.test"), what="the late answer")
    assert names.asked["silent.test"] == 1


def _answers(resolver: Resolver, host: str) -> bool:
    try:
        return bool(resolver.addresses(host, deadline=later()))
    except LookupFailed:
        return False


def test_a_deadline_shortly_after_the_question_is_no_proof_that_a_name_hangs(
    names: Names, resolver: Resolver
) -> None:
    begin(resolver, "silent.test")
    begin(resolver, "silent.test")
    names.healed.set()
    assert resolver.addresses("silent.test", deadline=later()) == [ADDRESS]
    assert names.asked["silent.test"] == 1


def test_only_two_callers_wait_for_a_slow_name_until_their_deadline(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "SHORT_WAIT_S", 0.05)
    resolver = Resolver(names.resolve)

    def ask(_: int) -> str:
        try:
            return str(resolver.addresses("silent.test", deadline=later()))
        except Shortage as shortage:
            return str(shortage)

    with ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(ask, number) for number in range(6)]
        eventually(lambda: sum(one.done() for one in asking) == 4, what="four that give up")
        names.healed.set()
        ended = Counter(one.result(GUARD_S) for one in asking)
    assert ended == {
        str([ADDRESS]): 2,
        "too many wait for the DNS lookup of this name": 4,
    }
    assert names.asked["silent.test"] == 1


def test_all_slow_names_together_have_only_so_many_callers_waiting(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "SHORT_WAIT_S", 0.05)
    resolver = Resolver(names.resolve, max_patient=1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(resolver.addresses, "silent.a.test", deadline=later())
        eventually(lambda: names.asked["silent.a.test"] == 1, what="the first lookup")
        with pytest.raises(Shortage):
            resolver.addresses("silent.b.test", deadline=later())
        names.healed.set()
        assert waiting.result(GUARD_S) == [ADDRESS]


# --- what is remembered, and what this process lacks


def test_an_answer_is_shared_for_a_few_seconds(names: Names, resolver: Resolver) -> None:
    for _ in range(3):
        assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]
    assert names.asked["good.test"] == 1
    names.now += ANSWER_SHARED_S
    assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]
    assert names.asked["good.test"] == 2


def test_only_so_many_names_are_remembered(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "MAX_NAMES", 2)
    assert MAX_NAMES < 10_000
    resolver = Resolver(names.resolve, clock=lambda: names.now)
    for number in range(3):
        assert resolver.addresses(f"good-{number}.test", deadline=later()) == [ADDRESS]
        with pytest.raises(LookupFailed, match=r"failure$"):
            resolver.addresses(f"failing-{number}.test", deadline=later())
    resolver.addresses("good-2.test", deadline=later())
    resolver.addresses("good-0.test", deadline=later())
    assert (names.asked["good-2.test"], names.asked["good-0.test"]) == (1, 2)
    with pytest.raises(LookupFailed, match="asked again"):
        resolver.addresses("failing-2.test", deadline=later())
    with pytest.raises(LookupFailed, match=r"failure$"):
        resolver.addresses("failing-0.test", deadline=later())


def test_without_a_further_thread_there_is_a_shortage_and_the_next_lookup_works(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Shortage) as refused:
            resolver.addresses("good.test", deadline=later())
    assert refused.value.kind is ShortageKind.THREAD
    assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]


def test_without_a_descriptor_a_name_is_not_called_unknown() -> None:
    resolver = Resolver(socket.getaddrinfo)
    with crowded_out(), pytest.raises(Shortage) as refused:
        resolver.addresses("localhost", deadline=later())
    assert refused.value.kind is ShortageKind.DESCRIPTOR
    assert resolver.addresses("localhost", deadline=later())


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (MemoryError(), ShortageKind.MEMORY),
        (socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"), ShortageKind.MEMORY),
        (OSError(24, "Too many open files"), ShortageKind.DESCRIPTOR),
        (OSError(105, "No buffer space available"), ShortageKind.MEMORY),
    ],
)
def test_what_the_resolver_lacks_is_no_trouble_of_the_name(
    names: Names, failure: Exception, kind: ShortageKind
) -> None:
    failures = [failure]

    def resolve(host: str, port: int, family: int, type_: int) -> Found:
        if failures:
            raise failures.pop()
        return names.resolve(host, port, family, type_)

    resolver = Resolver(resolve)
    with pytest.raises(Shortage) as refused:
        resolver.addresses("good.test", deadline=later())
    assert refused.value.kind is kind
    assert resolver.addresses("good.test", deadline=later()) == [ADDRESS]
