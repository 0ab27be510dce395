-- The rows of the workers, dead ones included.
SELECT incarnation::text AS incarnation, worker_id, host, pid, version, metrics_address,
       extract(epoch FROM now() - seen_at)::float8 AS seen_s_ago
  FROM pggit.workers
 ORDER BY worker_id, started_at
