-- Store the lanes after their results: health counters, circuit, tokens, in flight, speed,
-- next look.
UPDATE pggit.webhook_health_metrics h
   SET total_deliveries = h.total_deliveries + r.total,
       successful_deliveries = h.successful_deliveries + r.successful,
       failed_deliveries = h.failed_deliveries + r.total - r.successful,
       response_time_sum_ms = h.response_time_sum_ms + r.sum_ms,
       avg_response_time_ms = CASE WHEN r.total = 0 THEN h.avg_response_time_ms
           ELSE round(((h.response_time_sum_ms + r.sum_ms) / (h.total_deliveries + r.total))
                      ::numeric, 2) END,
       min_response_time_ms = least(h.min_response_time_ms, round(r.min_ms::numeric, 2)),
       max_response_time_ms = greatest(h.max_response_time_ms, round(r.max_ms::numeric, 2)),
       last_check_at = CASE WHEN r.total > 0 THEN now() ELSE h.last_check_at END,
       last_success_at = CASE WHEN r.successful > 0 THEN now() ELSE h.last_success_at END,
       last_failure_at = CASE WHEN r.total > r.successful THEN now() ELSE h.last_failure_at END,
       health_status = r.health_status,
       consecutive_failures = r.failures,
       circuit_state = r.circuit_state,
       circuit_epoch = r.circuit_epoch,
       circuit_until = to_timestamp(r.circuit_until),
       hold_until = to_timestamp(r.hold_until),
       tokens = r.tokens,
       tokens_at = to_timestamp(r.tokens_at),
       in_flight = r.in_flight,
       runnable_at = to_timestamp(r.runnable_at),
       blocked_by = r.blocked_by,
       failing_since = to_timestamp(r.failing_since),
       exchange_seconds = r.exchange_seconds,
       slow = r.slow
  FROM {settled_lanes}
 -- The list has the rows looked up by their key (see claim).
 WHERE h.webhook_id = ANY (%(webhook_ids)s::bigint[])
   AND h.webhook_id = r.webhook_id
