-- The workers of all hosts. Each reports every few seconds; once one is dead its row is removed.
SELECT worker_id, host, pid, version, extract(epoch FROM now() - started_at)::float8 AS up_s,
       extract(epoch FROM now() - seen_at)::float8 AS seen_s_ago
  FROM pggit.workers
 ORDER BY worker_id, started_at
