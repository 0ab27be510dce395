"""Rest for chores that take long."""

import time

from webhookd.postgres import statements
from webhookd.worker.chores.chore import TURN_S, Pool

# A chore rests for so many times as long as it took. With ten million waiting rows, or under an old
# snapshot, it would keep one of the server's processors busy otherwise.
REST_FACTOR = 3.0
# Not longer than this: the queue's depth must be counted again before the last count is too old to
# be shown (sql/queries/read_depth.sql).
MAX_REST_S = 30.0


def put_off(pool: Pool, chore: str, seconds: float) -> None:
    """Have no worker run the shared *chore* before its interval and *seconds* have passed."""
    with pool.connection() as connection:
        connection.execute(statements.load("rest_chore"), {"chore": chore, "seconds": seconds})


def rest(pool: Pool, chore: str, *, began: float, is_put_off: bool = False) -> float:
    """Let the shared *chore*, which began at *began* (monotonic) and has just ended, rest on all
    workers. Return for how many seconds.

    *is_put_off*: it was put off already, perhaps for longer than it has to rest.
    """
    rest_s = min(MAX_REST_S, (time.monotonic() - began) * REST_FACTOR)
    if is_put_off or rest_s > TURN_S:
        put_off(pool, chore, max(0.0, rest_s - TURN_S))
    return rest_s
