"""A cache that is bounded by bytes, and from which what is no longer used leaves.

Workers remember what they derive from a webhook's row. Rows hold secrets, so a value that nothing
uses any more must not stay until 4,096 newer ones have replaced it.
"""

import threading
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# What an entry costs besides its key and value: the tuple, and its share of a dict.
ENTRY_BYTES = 200

_caches: "WeakSet[ByteCache[Any, Any]]" = WeakSet()


class ByteCache(Generic[Key, Value]):
    """Values by key: those used last, whose sizes sum up to *max_bytes* at most. Threads may share
    it, and a value that is found costs no lock.

    Entries are in two generations. What is stored or used belongs to the younger one. When that has
    reached half of the bytes, or `age` is called, it becomes the older one, and what was in the
    older one is forgotten. So an entry that is used stays, and one that is not leaves with the
    second call of `age`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_young = max_bytes // 2
        self._lock = threading.Lock()  # for all changes
        self._young: dict[Key, tuple[Value, int]] = {}
        self._old: dict[Key, tuple[Value, int]] = {}
        self._young_bytes = self._old_bytes = 0
        _caches.add(self)

    def get(self, key: Key) -> Value | None:
        """Return the value of *key*, or None."""
        found = self._young.get(key)
        return self._revive(key) if found is None else found[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Store *value* for *key*. *size*: the bytes of both. One that is larger than half of the
        cache is not stored.
        """
        with self._lock:
            self._forget(key)
            self._add(key, value, size + ENTRY_BYTES)

    def age(self) -> None:
        """Begin a new generation, and forget what was not used in the one that ends."""
        with self._lock:
            self._begin_generation()

    def size(self) -> int:
        """Return the bytes of all entries."""
        with self._lock:
            return self._young_bytes + self._old_bytes

    def _revive(self, key: Key) -> Value | None:
        with self._lock:
            found = self._old.pop(key, None)
            if found is None:
                # Another thread may have revived it since this one looked.
                found = self._young.get(key)
                return None if found is None else found[0]
            self._old_bytes -= found[1]
            self._add(key, *found)
            return found[0]

    def _forget(self, key: Key) -> None:
        _, size = self._young.pop(key, (None, 0))
        self._young_bytes -= size
        _, size = self._old.pop(key, (None, 0))
        self._old_bytes -= size

    def _add(self, key: Key, value: Value, size: int) -> None:
        if size > self._max_young:
            return
        if self._young_bytes + size > self._max_young:
            self._begin_generation()
        self._young[key] = (value, size)
        self._young_bytes += size

    def _begin_generation(self) -> None:
        self._old, self._old_bytes = self._young, self._young_bytes
        self._young, self._young_bytes = {}, 0


def age_all() -> None:
    """Begin a new generation in every cache of this process."""
    for cache in list(_caches):
        cache.age()
