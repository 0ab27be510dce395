-- The transactions that may have looked at the flag before it was up. One that inserts holds this
-- lock from before its look until its end, prepared transactions included (their pid is NULL). The
-- triggers of the registry and of the lanes look, too.
SELECT DISTINCT l.virtualtransaction
  FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'relation'
   AND l.relation IN ('pggit.alert_delivery_queue'::regclass, 'pggit.webhooks'::regclass,
                      'pggit.webhook_health_metrics'::regclass)
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
                      WHERE d.datname = current_database())
   AND l.mode = 'RowExclusiveLock' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
