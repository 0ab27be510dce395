-- Where the workers that were heard of in the last minute serve their metrics.
SELECT worker_id, host, metrics_address
  FROM pggit.workers
 WHERE metrics_address IS NOT NULL AND seen_at > now() - interval '60 seconds'
 ORDER BY worker_id, host
