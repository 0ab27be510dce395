-- The registry's word on the lanes just locked. A statement of its own: its snapshot is younger than the locks, so a
-- registration or a resume that committed before them is seen, and a later one finds the lane parked and unparks it.
SELECT webhook_id, url, enabled, secret, headers::text, timeout_seconds, max_in_flight, rate_limit_per_second,
       rate_limit_burst, retry_base_seconds, retry_max_seconds, circuit_failure_threshold, circuit_open_seconds
  FROM pggit.webhooks
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[])
