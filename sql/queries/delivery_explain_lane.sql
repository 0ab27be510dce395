-- A webhook's lane as lock_lanes returns it, unlocked.
SELECT h.webhook_id, h.circuit_state, h.circuit_epoch, h.consecutive_failures,
       extract(epoch FROM h.circuit_until)::float8, extract(epoch FROM h.hold_until)::float8,
       h.tokens, extract(epoch FROM h.tokens_at)::float8, h.in_flight,
       extract(epoch FROM h.runnable_at)::float8, h.blocked_by, h.health_status
  FROM pggit.webhook_health_metrics h
 WHERE h.webhook_id = %(webhook_id)s
