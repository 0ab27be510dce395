"""The cache against a model: what is found is what was stored, within its bytes, and what is not
used leaves.
"""

import threading

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from webhookd import cache
from webhookd.cache import ENTRY_BYTES, ByteCache

MAX_BYTES = 4000
keys = st.integers(0, 12)
sizes = st.integers(0, 2500)


class Model(RuleBasedStateMachine):
    """Knows what was stored last, and when each key was last stored or found."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: ByteCache[int, str] = ByteCache(MAX_BYTES)
        self.stored: dict[int, str] = {}
        self.used: dict[int, int] = {}
        self.ages = self.count = 0

    @rule(key=keys, size=sizes)
    def put(self, key: int, size: int) -> None:
        self.count += 1
        self.stored[key] = f"value {self.count}"
        self.cache.put(key, self.stored[key], size)
        self.used[key] = self.ages

    @rule(key=keys)
    def get(self, key: int) -> None:
        found = self.cache.get(key)
        assert found in (None, self.stored.get(key)), "an older value was found"
        if found is not None:
            assert self.ages - self.used[key] < 2, "an entry outlived its second generation"
            self.used[key] = self.ages

    @rule()
    def age(self) -> None:
        self.cache.age()
        self.ages += 1

    @invariant()
    def within_its_bytes(self) -> None:
        assert 0 <= self.cache.size() <= MAX_BYTES

    def teardown(self) -> None:
        for _ in range(2):
            self.cache.age()
        assert self.cache.size() == 0
        assert all(self.cache.get(key) is None for key in self.stored)


TestModel = Model.TestCase


@given(st.lists(st.tuples(keys, st.integers(0, 300)), max_size=8))
def test_what_fits_into_one_generation_is_found(entries: list[tuple[int, int]]) -> None:
    of_cache: ByteCache[int, int] = ByteCache(2 * 8 * (300 + ENTRY_BYTES))
    for key, size in entries:
        of_cache.put(key, size, size)
    assert all(of_cache.get(key) == size for key, size in dict(entries).items())


def test_an_entry_in_use_outlives_many_generations_and_any_number_of_others() -> None:
    of_cache: ByteCache[int, str] = ByteCache(100 * ENTRY_BYTES)
    of_cache.put(-1, "in use", 0)
    for other in range(1000):
        of_cache.put(other, "other", 0)
        assert of_cache.get(-1) == "in use"
        if other % 7 == 0:
            of_cache.age()
    assert of_cache.get(0) is None


def test_an_entry_of_more_than_half_the_bytes_is_not_stored() -> None:
    of_cache: ByteCache[int, str] = ByteCache(1000)
    of_cache.put(1, "small", 0)
    of_cache.put(1, "large", 600)
    assert of_cache.get(1) is None
    assert of_cache.size() == 0


def test_all_caches_age_at_once() -> None:
    caches: list[ByteCache[int, str]] = [ByteCache(1000), ByteCache(1000)]
    for one in caches:
        one.put(1, "value", 0)
    cache.age_all()
    cache.age_all()
    assert [one.size() for one in caches] == [0, 0]


def test_threads_find_only_what_belongs_to_their_key() -> None:
    of_cache: ByteCache[int, int] = ByteCache(40 * ENTRY_BYTES)
    wrong: list[tuple[int, int]] = []

    def work(first: int) -> None:
        for turn in range(5_000):
            key = (first + turn * 7) % 31
            found = of_cache.get(key)
            if found is None:
                of_cache.put(key, key, key)
            elif found != key:
                wrong.append((key, found))
            if turn % 101 == 0:
                of_cache.age()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 <= of_cache.size() <= 40 * ENTRY_BYTES
    for _ in range(2):
        of_cache.age()
    assert of_cache.size() == 0
