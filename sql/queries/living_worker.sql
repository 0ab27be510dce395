-- The worker that reported last, unless it is dead; and after how many seconds it counts as dead.
SELECT worker_id, host, extract(epoch FROM {dead_after})::int
  FROM pggit.workers
 WHERE seen_at > now() - {dead_after}
 ORDER BY seen_at DESC
 LIMIT 1
