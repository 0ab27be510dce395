-- Where the workers that are not dead serve their metrics.
SELECT worker_id, host, metrics_address
  FROM pggit.workers
 WHERE metrics_address IS NOT NULL AND seen_at > now() - {dead_after}
 ORDER BY worker_id, host
