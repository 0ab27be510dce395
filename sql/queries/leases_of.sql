-- Claims of a worker incarnation that died. A probe is known by its lease, which the lane repeats: its epoch lets the next
-- probe go at once.
SELECT q.delivery_id, q.lease_token,
       CASE WHEN h.circuit_state = 'half_open' AND h.circuit_until = q.lease_until THEN h.circuit_epoch ELSE -1 END,
       q.retry_count, q.max_retries, q.attempts, q.leases_lost,
       q.webhook_id, coalesce(w.url, ''), coalesce(w.enabled, false), w.secret, w.headers::text, w.timeout_seconds,
       w.max_in_flight, w.rate_limit_per_second, w.rate_limit_burst, w.retry_base_seconds, w.retry_max_seconds,
       w.circuit_failure_threshold, w.circuit_open_seconds
  FROM pggit.alert_delivery_queue q
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE q.delivery_status = 'sending' AND q.leased_by = %(incarnation)s
 ORDER BY q.lease_until
 LIMIT %(limit)s
