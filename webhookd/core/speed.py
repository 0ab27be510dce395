"""How long a lane's exchanges take, and whether that makes it slow.

A slow lane must leave slots to others (see `core.slots`); the database keeps its rows apart, so
that looks for other work do not meet it. The whole fleet shares what is measured: it is stored with
the lane. Times are seconds.
"""

from typing import NamedTuple

# An exchange that holds a sender for longer costs other lanes more than they would notice. Between
# the two a lane stays what it is: one that changed with each result would move its rows for ever.
SLOW_AFTER_S, NOT_SLOW_BELOW_S = 0.25, 0.15
WEIGHT = 0.2  # of the last exchange in the mean
# An exchange counts as no longer than this. With the weight, one hiccup of a fast receiver does not
# make its lane slow, a second one does; and ten fast exchanges end it.
LONGEST_COUNTED_S = 1.0


class Speed(NamedTuple):
    """*exchange_s*: a mean that follows the last exchanges. Both are None until there was one."""

    exchange_s: float | None = None
    slow: bool | None = None

    def after(self, *exchanges_s: float) -> "Speed":
        """Return the speed once exchanges took *exchanges_s*, in this order, timeouts included."""
        mean_s, slow = self
        for exchange_s in exchanges_s:
            counted_s = exchange_s if exchange_s < LONGEST_COUNTED_S else LONGEST_COUNTED_S
            mean_s = counted_s if mean_s is None else mean_s + (counted_s - mean_s) * WEIGHT
            slow = mean_s >= (NOT_SLOW_BELOW_S if slow else SLOW_AFTER_S)
        return Speed(mean_s, slow)


UNMEASURED = Speed()
