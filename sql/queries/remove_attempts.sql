-- Remove the attempts on the pages from %(first)s up to %(end)s that are older than the attempt log is kept.
DELETE FROM pggit.alert_delivery_log
 WHERE ctid = ANY (ARRAY(
    SELECT f.ctid
      FROM pggit.alert_delivery_log f
     WHERE f.ctid >= %(first)s::tid AND f.ctid < %(end)s::tid
       AND f.created_at < now() - %(keep_log_s)s::float8 * interval '1 second'
       /* and nothing refers to it */
       FOR UPDATE SKIP LOCKED))
