"""Defects planted in the slots, by the property that must catch them."""

MUTANTS = {
    "the_rules_hold": [
        ("lane = ring.lanes.popleft()", "lane = ring.lanes.pop()"),
        ("delivery = lane.rows.popleft()", "delivery = lane.rows.pop()"),
        ("self._turns.append(ring)", "self._turns.insert(0, ring)"),
        ("or lane.running < NEW_EACH", ""),
        (">= reserve.not_fast:", "> reserve.not_fast:"),
        ("slow < (reserve.half if others else reserve.slow)", "slow < reserve.slow"),
        ("reserve.half if others else reserve.slow", "reserve.half"),
        ("if lane.overdue else self._rings[_kind(lane.speed)]", "if lane.speed.slow else was"),
        ("lane.overdue -= 1", "pass"),
    ],
    "the_sums_are_right": [
        ("was.waiting -= len(lane.rows)", "was.waiting -= 0"),
        ("ring.running += lane.running", "ring.running += 0"),
        ("ring.body_bytes += lane.body_bytes", "ring.body_bytes += 0"),
        ("ring.waiting -= count", "ring.waiting -= 0"),
    ],
    "what_could_begin_is_known": [
        ("min(self._slow.waiting, max(0, slow))", "self._slow.waiting"),
    ],
    "slow_rows_do_not_gather": [
        ("- self._slow.running - self._slow.waiting", "- self._slow.running"),
    ],
}
