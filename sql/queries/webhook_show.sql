-- One webhook: its registry row, its health and lane, and what waits for it. No row if neither the
-- registry nor a lane knows it.
SELECT w.webhook_id IS NOT NULL AS registered,
       {settings_columns:w}, w.disabled_reason, w.created_at,
       CASE WHEN w.old_secret_until > now() THEN w.old_secret_until END AS old_secret_until,
       coalesce(h.health_status, 'unknown') AS health_status,
       h.total_deliveries, h.successful_deliveries, h.failed_deliveries,
       h.avg_response_time_ms::float8,
       h.consecutive_failures, h.last_check_at, h.last_success_at, h.last_failure_at,
       coalesce(h.circuit_state, 'closed') AS circuit_state,
       h.circuit_until, h.hold_until, h.blocked_by, h.blocked_reason, h.in_flight,
       (SELECT count(*) FROM pggit.alert_delivery_queue q
         WHERE q.webhook_id = %(webhook_id)s AND {undelivered:q}) AS waiting
  FROM (VALUES (%(webhook_id)s::bigint)) AS wanted (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
 WHERE w.webhook_id IS NOT NULL OR h.webhook_id IS NOT NULL
