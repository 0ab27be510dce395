-- What all workers did in the last hour (up to their last report, some seconds ago), and durations
-- by bucket.
WITH hour AS (
    SELECT * FROM pggit.worker_minutes WHERE minute > now() - interval '1 hour'
)
SELECT coalesce(sum(attempts), 0)::bigint AS attempts,
       coalesce(sum(delivered), 0)::bigint AS delivered,
       coalesce(sum(circuit_opens), 0)::bigint AS circuit_opens,
       max(slowest_seconds) AS slowest_s,
       coalesce(sum(rate_limit_hits)
                    FILTER (WHERE minute > now() - interval '5 minutes'), 0)::float8
           / 5 AS rate_limit_hits_a_minute,
       ARRAY(SELECT sum(d.attempts)::bigint
               FROM hour h
              CROSS JOIN unnest(h.durations) WITH ORDINALITY AS d (attempts, bucket)
              GROUP BY d.bucket
              ORDER BY d.bucket) AS durations
  FROM hour
