-- The living workers, the newest first, and the options that decide what they deliver.
SELECT worker_id, host, options
  FROM pggit.workers
 WHERE seen_at > now() - {dead_after}
 ORDER BY started_at DESC, incarnation
