-- The workers of all hosts, the one that reported last first.
SELECT incarnation, worker_id, host, pid, has_room,
       extract(epoch FROM now() - seen_at)::float8 AS seen_s_ago
  FROM pggit.workers
 ORDER BY seen_at DESC
