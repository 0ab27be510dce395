"""What a webhook's registry row may say. Applications write it with plain SQL, and no row may end a
worker or undo a record.
"""

from functools import lru_cache

from webhookd.config.kinds import LONGEST_S, SLOWEST_RATE

LONGEST_TIMEOUT_S = 600.0
FASTEST_RATE = 1e9


@lru_cache(maxsize=1024)  # most webhooks have the same
def bounded(
    timeout_s: float,
    max_in_flight: int,
    rate: float,
    burst: int,
    retry_base_s: float,
    retry_max_s: float,
    circuit_threshold: int,
    circuit_open_s: float,
) -> tuple[float, int, float, int, float, float, int, float]:
    """Return the same within bounds: PostgreSQL refuses instants that are too far off, and with
    them the claim or the record.
    """
    return (
        _within(timeout_s, 0.0, LONGEST_TIMEOUT_S),
        max_in_flight,
        0.0 if rate == 0 else _within(rate, SLOWEST_RATE, FASTEST_RATE),
        max(1, burst),
        _within(retry_base_s, 0.0, LONGEST_S),
        _within(retry_max_s, 0.0, LONGEST_S),
        circuit_threshold,
        _within(circuit_open_s, 0.0, LONGEST_S),
    )


def _within(value: float, low: float, high: float) -> float:
    # In this order NaN comes out as the highest, as PostgreSQL sorts it.
    return max(low, min(high, value))
