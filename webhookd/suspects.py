"""When a worker tries suspects, the rows that may kill it: alone, so that they kill nothing else. Times are monotonic."""

import math

SUSPECTS_EVERY_S = 10.0  # while every claim is full nothing else would ask for suspect rows
# Due and not to be had: another worker has it locked for a moment, an operator for an hour, or the sweep has yet to make its
# lane. Running dry costs all others throughput, so the longer that lasts the longer the pauses.
MISSED_FIRST_S, MISSED_MOST_S = 10.0, 60.0


class Suspects:
    """*alone*: claim nothing, and once nothing is in hand try a suspect. Due at *due_at*, to be asked for again at *see_at*."""

    def __init__(self) -> None:
        self.alone = False
        self.due_at = math.inf
        self.see_at = -math.inf
        self._not_before = -math.inf
        self._pause_s = MISSED_FIRST_S

    def turn(self, now: float) -> None:
        """Begin to be alone where it is time."""
        if now >= self.due_at:
            self.alone, self.due_at = True, math.inf

    def see(self, suspect_s: float, *, now: float) -> None:
        """Note that the earliest suspect is due in *suspect_s*; one that is due already and was not to be had waits."""
        self.due_at = now + suspect_s if suspect_s > 0 else max(now, self._not_before)
        self.see_at = now + SUSPECTS_EVERY_S

    def sent(self) -> None:
        """One is in hand now: stay alone."""
        self._pause_s = MISSED_FIRST_S

    def put_off(self) -> None:
        """One was found, and its lane may not give it yet; there may be others."""
        self.alone = False
        self._pause_s = MISSED_FIRST_S

    def missed(self, now: float) -> None:
        """None was to be had; one that is due nonetheless is left alone for a while."""
        self.alone = False
        self._not_before = now + self._pause_s
        self._pause_s = min(MISSED_MOST_S, self._pause_s * 2)
