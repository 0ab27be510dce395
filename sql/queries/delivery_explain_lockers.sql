-- Open transactions of others that hold this delivery's row or its lane's: claims skip what is
-- locked, and report nothing. A row's xmax names the transaction that changed or locked it; while
-- that one is open, it holds the lock on its own number.
WITH held (what, xid) AS (
    SELECT 'delivery', q.xmax
      FROM pggit.alert_delivery_queue q
     WHERE q.delivery_id = %(delivery_id)s
    UNION ALL
    SELECT 'lane', h.xmax
      FROM pggit.webhook_health_metrics h
     WHERE h.webhook_id = %(webhook_id)s
)
SELECT held.what, a.pid, a.application_name, a.usename::text AS role, a.state, p.gid,
       extract(epoch FROM now() - coalesce(a.xact_start, p.prepared))::float8 AS open_s
  FROM held
  JOIN pg_catalog.pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = held.xid
                            AND l.granted AND l.mode = 'ExclusiveLock'
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_catalog.pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid
 WHERE a.application_name IS NULL OR NOT starts_with(a.application_name, 'webhookd/')
