-- One webhook: its registry row, its health and lane, and what waits for it. No row if neither registry nor lane knows it.
SELECT w.webhook_id IS NOT NULL AS registered,
       w.url, w.enabled, w.disabled_reason, w.secret, w.headers::text, w.created_at,
       w.timeout_seconds, w.max_in_flight, w.rate_limit_per_second, w.rate_limit_burst,
       w.retry_base_seconds, w.retry_max_seconds, w.circuit_failure_threshold, w.circuit_open_seconds,
       coalesce(h.health_status, 'unknown') AS health_status,
       h.total_deliveries, h.successful_deliveries, h.failed_deliveries, h.avg_response_time_ms::float8,
       h.consecutive_failures, h.last_check_at, h.last_success_at, h.last_failure_at,
       coalesce(h.circuit_state, 'closed') AS circuit_state, h.circuit_until, h.hold_until, h.blocked_by, h.in_flight,
       (SELECT count(*) FROM pggit.alert_delivery_queue q
         WHERE q.webhook_id = %(webhook_id)s AND q.delivery_status IN ('pending', 'retrying', 'sending')) AS waiting
  FROM (VALUES (%(webhook_id)s::bigint)) AS wanted (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
 WHERE w.webhook_id IS NOT NULL OR h.webhook_id IS NOT NULL
