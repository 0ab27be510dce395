-- Claims whose lease ran out, whoever held it. Epoch -1: if it was a probe, its lane's circuit_until has passed as well.
SELECT q.delivery_id, q.lease_token, -1, q.retry_count, q.max_retries, q.attempts, q.leases_lost,
       q.webhook_id, coalesce(w.url, ''), coalesce(w.enabled, false), w.secret, w.headers::text, w.timeout_seconds,
       w.max_in_flight, w.rate_limit_per_second, w.rate_limit_burst, w.retry_base_seconds, w.retry_max_seconds,
       w.circuit_failure_threshold, w.circuit_open_seconds
  FROM pggit.alert_delivery_queue q
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE q.delivery_status = 'sending' AND q.lease_until <= now()
 ORDER BY q.lease_until
 LIMIT %(limit)s
