-- Register a webhook; no row comes back if the id is taken.
INSERT INTO pggit.webhooks
       (webhook_id, url, secret, headers, timeout_seconds, max_in_flight, rate_limit_per_second, rate_limit_burst,
        retry_base_seconds, retry_max_seconds, circuit_failure_threshold, circuit_open_seconds)
VALUES (%(webhook_id)s, %(url)s, %(secret)s, %(headers)s::jsonb, %(timeout_seconds)s, %(max_in_flight)s,
        %(rate_limit_per_second)s, %(rate_limit_burst)s, %(retry_base_seconds)s, %(retry_max_seconds)s,
        %(circuit_failure_threshold)s, %(circuit_open_seconds)s)
ON CONFLICT (webhook_id) DO NOTHING
RETURNING webhook_id
