"""When a worker tries suspects, the rows that may kill it: alone, so that they kill nothing else.
Times are monotonic.
"""

import math

# Twice an exchange's default timeout. Without a bound one lane that an operator has locked, and a
# result that waits for it, would keep the worker from claiming anything for anybody.
ALONE_WITHIN_S = 10.0
SUSPECTS_EVERY_S = 10.0  # how often to ask for one while there is always something else to claim, or to ask for again
# Due and not to be had: another worker has it locked for a moment, an operator for an hour, the
# sweep has yet to make its lane, or something stays in hand. Running dry costs all others
# throughput, so the longer that lasts the longer the pauses.
MISSED_FIRST_S, MISSED_MOST_S = 10.0, 60.0


class Quarantine:
    """*alone*: claim nothing, and once nothing is in hand try a suspect. Due at *due_at*, to be
    asked for again at *see_at*.
    """

    def __init__(self) -> None:
        self.alone = False
        self.due_at = math.inf
        self.see_at = -math.inf
        self._alone_until = math.inf
        self._missed_at = self._not_before = -math.inf
        self._pause_s = MISSED_FIRST_S

    def turn(self, now: float) -> None:
        """Begin to be alone where it is time, and give that up where it takes too long."""
        if now >= self.due_at:
            self.alone, self.due_at = True, math.inf
            self._alone_until = now + ALONE_WITHIN_S
        elif self.alone and now >= self._alone_until:
            self.missed(now)
            self.due_at = self._not_before

    def see(self, suspect_s: float, *, now: float) -> None:
        """Note that the earliest suspect is due *suspect_s* after *now*; one that was due and not
        to be had waits.

        *now* must be no earlier than the database's answer: what comes due while it is asked for
        would wait, too.
        """
        due_at = now + suspect_s
        self.due_at = due_at if due_at > self._missed_at else max(due_at, self._not_before)
        self.see_at = now + SUSPECTS_EVERY_S

    def sent(self, now: float, *, timeout_s: float) -> None:
        """One is in hand now: stay alone for as long as its exchange may last."""
        self._alone_until = now + timeout_s + ALONE_WITHIN_S
        self._pause_s = MISSED_FIRST_S

    def put_off(self) -> None:
        """One was found, and its lane may not give it yet; there may be others."""
        self.alone = False
        self._pause_s = MISSED_FIRST_S

    def missed(self, now: float) -> None:
        """None was to be had; one that is due nonetheless has to wait for a while."""
        self.alone, self._missed_at = False, now
        self._not_before = now + self._pause_s
        self._pause_s = min(MISSED_MOST_S, self._pause_s * 2)
