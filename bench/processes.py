"""CPU seconds and memory of process trees, out of /proc (Linux)."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6)  # of the "cpu" line in /proc/stat: user, nice, system, irq, softirq


def tree(*roots: int) -> list[int]:
    """Return *roots* and all their descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(roots)
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def cpu_s(*roots: int) -> float:
    """Return the CPU seconds (user and system) of *roots* and their descendants, including those
    that have ended and were waited for. Precise to some 10 ms for each process.
    """
    ticks = 0
    for pid in tree(*roots):
        if fields := _stat(pid):
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks * _TICK_S


def ended_children_cpu_s(pid: int) -> float:
    """Return the CPU seconds of *pid*'s children that have ended and were waited for, such as a
    postmaster's sessions.
    """
    fields = _stat(pid)
    return sum(map(int, fields[13:15])) * _TICK_S


def pss_bytes(pid: int) -> int:
    """Return a process' proportional set size: its own memory and its share of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no Pss of process {pid}")


class Meter:
    """What named process trees, and the rest of the machine, spend from `start` on.

    *roots* maps a name to the root processes of its trees.
    """

    def __init__(self, roots: Mapping[str, Iterable[int]]) -> None:
        self._roots = {name: tuple(pids) for name, pids in roots.items()}
        self._before: dict[str, float] = {}
        self._began = 0.0
        self.start()

    def start(self) -> None:
        """Start, or start again."""
        self._before = self._read()
        self._began = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def spent_s(self) -> dict[str, float]:
        """Return the CPU seconds since the start by name; "other" is the rest of the machine,
        including this process.
        """
        return {name: now - self._before[name] for name, now in self._read().items()}

    def _read(self) -> dict[str, float]:
        spent = {name: cpu_s(*pids) for name, pids in self._roots.items()}
        fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
        return {
            **spent,
            "other": sum(int(fields[i]) for i in _BUSY) * _TICK_S - sum(spent.values()),
        }


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (the third of proc(5)); empty if the
    process is gone.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
