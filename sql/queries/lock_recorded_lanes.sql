-- Lock the lanes of the results at hand, in one order for all workers. A row that an operator's open transaction holds is
-- skipped: it delays its own webhook's results only.
SELECT webhook_id, circuit_state, circuit_epoch, consecutive_failures,
       extract(epoch FROM circuit_until)::float8, extract(epoch FROM hold_until)::float8,
       tokens, extract(epoch FROM tokens_at)::float8, in_flight,
       extract(epoch FROM runnable_at)::float8, blocked_by, health_status, extract(epoch FROM now())::float8
  FROM pggit.webhook_health_metrics
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[])
 ORDER BY webhook_id
   FOR NO KEY UPDATE SKIP LOCKED
