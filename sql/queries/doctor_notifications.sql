-- How full the queue of notifications is, and the oldest transaction: a session that listens reads
-- none while it is in one.
SELECT pg_notification_queue_usage() AS usage, s.pid, s.usename, s.application_name,
       extract(epoch FROM now() - s.xact_start)::float8 AS age_s
  FROM (SELECT) one
  LEFT JOIN (SELECT pid, usename, application_name, xact_start
               FROM pg_stat_activity
              WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()
              ORDER BY xact_start
              LIMIT 1) s ON true
