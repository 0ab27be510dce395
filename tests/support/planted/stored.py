"""Steps that the stored breaker needs, each left out by a mutant."""

from tests.support.mutants import StoredMutant

STORED = (
    # The fence.
    StoredMutant("settle", "AND q.lease_token = r.token", ""),
    StoredMutant(
        "settle", "SELECT delivery_id, token FROM settled", "SELECT delivery_id, token FROM result"
    ),
    StoredMutant("token", "random", "always the same"),
    # The generation.
    StoredMutant(
        "lane",
        "settlement.vote, generation=delivery.",
        "settlement.vote, generation=",
        rare=True,
    ),
    StoredMutant("update_lanes", "circuit_epoch = r.circuit_epoch,", ""),
    StoredMutant("begin_probes", "circuit_epoch = circuit_epoch + 1,", ""),
    StoredMutant("claim_quarantined", "circuit_epoch = h.circuit_epoch + %(probe)s::int,", ""),
    StoredMutant("reset_circuit", "NEW.circuit_epoch := OLD.circuit_epoch + 1;", ""),
    # What a record stores.
    StoredMutant("update_lanes", "circuit_state = r.circuit_state,", ""),
    StoredMutant("update_lanes", "circuit_until = to_timestamp(r.circuit_until),", ""),
    StoredMutant("update_lanes", "consecutive_failures = r.failures,", ""),
    StoredMutant("update_lanes", "health_status = r.health_status,", ""),
    StoredMutant("update_lanes", "in_flight = r.in_flight,", ""),
    StoredMutant("update_lanes", "runnable_at = to_timestamp(r.runnable_at),", "", rare=True),
    # What the claim of a probe stores.
    StoredMutant("begin_probes", "circuit_state = 'half_open',", ""),
    StoredMutant(
        "begin_probes",
        "circuit_until = now() + %(lease_s)s * interval '1 second',",
        "circuit_until = circuit_until,",
    ),
    StoredMutant("begin_probes", ", health_status = 'degraded'", ""),
    StoredMutant("claim", "in_flight = l.in_flight + t.n,", ""),
    StoredMutant(
        "claim_quarantined",
        "circuit_state = CASE WHEN %(probe)s THEN 'half_open' ELSE h.circuit_state END,",
        "",
        rare=True,
    ),
    StoredMutant(
        "claim_quarantined",
        "circuit_until = CASE WHEN %(probe)s",
        "circuit_until = CASE WHEN false",
        rare=True,
    ),
    StoredMutant("claim_quarantined", "AND %(admitted)s", "", rare=True),
    # The operator's reset.
    StoredMutant("reset_circuit", "NEW.circuit_state := 'closed';", ""),
    StoredMutant("reset_circuit", "NEW.circuit_until := NULL;", ""),
    StoredMutant("reset_circuit", "NEW.runnable_at := now();", "", rare=True),
    StoredMutant("reset_circuit", "BEGIN", "BEGIN RETURN NEW;"),
    # Leases that no worker recorded.
    StoredMutant("leases_of", "THEN h.circuit_epoch ELSE -1 END", "THEN -1 ELSE -1 END"),
    StoredMutant(
        "leases_of",
        "h.circuit_state = 'half_open' AND h.circuit_until = q.lease_until",
        "true",
        rare=True,
    ),
    StoredMutant("expired_leases", "AND q.lease_until <= now()", ""),
    # The locks.
    StoredMutant("lock_recorded_lanes", "FOR NO KEY UPDATE SKIP LOCKED", ""),
    StoredMutant("lock_lanes", "FOR NO KEY UPDATE SKIP LOCKED", ""),
    StoredMutant("lock_quarantined_lane", "FOR NO KEY UPDATE OF h, q SKIP LOCKED", ""),
)
