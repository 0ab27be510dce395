-- The transactions that may have looked at the flag before it was up: whoever inserts holds this lock from before its look
-- until its end, prepared transactions included (their pid is NULL).
SELECT DISTINCT l.virtualtransaction
  FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'relation' AND l.relation = 'pggit.alert_delivery_queue'::regclass
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
   AND l.mode = 'RowExclusiveLock' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
