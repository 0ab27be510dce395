"""How long to wait before trying again."""


def backoff_s(tries: int, *, base_s: float, cap_s: float, u: float) -> float:
    """Return base * 2^*tries* seconds, spread by a fifth to either side, never above *cap_s*.

    *tries* counts from 0; *u* is uniform in [0, 1). The spread keeps receivers that failed together
    from being hit together (AWS Architecture Blog, "Exponential Backoff And Jitter"); its mean is
    the schedule that the documentation states.
    """
    if tries < 0:
        raise ValueError(f"tries must be >= 0, got {tries}")
    # 2.0 ** 1024 raises OverflowError; long before that the cap rules.
    return min(cap_s, base_s * 2.0 ** min(tries, 60) * (0.8 + 0.4 * u))
