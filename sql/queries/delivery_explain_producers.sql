-- Open transactions that have written the queue, or are about to: what they inserted cannot be seen
-- before they commit. The oldest first; prepared ones have no pid. *open_s* is NULL where this role
-- may not see the sessions of others.
WITH locks AS MATERIALIZED (
    SELECT * FROM pg_catalog.pg_locks WHERE granted
)
SELECT a.pid, a.application_name, a.usename::text AS role, a.state, p.gid,
       extract(epoch FROM now() - coalesce(a.xact_start, p.prepared))::float8 AS open_s
  FROM locks l
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
                   AND x.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE l.locktype = 'relation' AND l.relation = 'pggit.alert_delivery_queue'::regclass
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
                      WHERE d.datname = current_database())
   AND l.mode = 'RowExclusiveLock'
   AND (a.application_name IS NULL OR NOT starts_with(a.application_name, 'webhookd/'))
 ORDER BY open_s DESC NULLS LAST, a.pid
