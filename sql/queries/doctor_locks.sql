-- Sessions other than webhookd's in a transaction older than old_s with a lock on the queue, the
-- lanes or the registry: their own rows are not visible yet, and rows that they changed or locked
-- cannot be claimed or recorded.
SELECT a.pid, a.usename, a.application_name, a.state,
       extract(epoch FROM now() - a.xact_start)::float8 AS age_s,
       array_agg(DISTINCT l.relation::regclass::text) AS tables
  FROM pg_locks l
  JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'relation' AND l.granted
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND l.relation IN ('pggit.alert_delivery_queue'::regclass,
                      'pggit.webhook_health_metrics'::regclass,
                      'pggit.webhooks'::regclass)
   -- Readers, and vacuum or an index that is built beside the traffic, are in no one's way.
   AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
   AND a.backend_type = 'client backend' AND a.application_name NOT LIKE 'webhookd/%%'
   AND a.xact_start < now() - %(old_s)s * interval '1 second'
 GROUP BY a.pid, a.usename, a.application_name, a.state, a.xact_start
 ORDER BY a.xact_start
