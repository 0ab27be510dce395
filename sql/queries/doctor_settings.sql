-- Settings of the whole server that webhookd depends on.
SELECT name, setting
  FROM pg_settings
 WHERE name IN ('autovacuum', 'track_counts', 'session_replication_role')
