-- Remove the attempts on the pages from %(first)s up to %(end)s that are older than the attempt log
-- is kept. Attempts never change, so unlike deliveries they are not locked first, which would
-- double the cost.
DELETE FROM pggit.alert_delivery_log f
 WHERE f.ctid >= %(first)s::tid AND f.ctid < %(end)s::tid
   AND f.created_at < now() - %(keep_log_s)s::float8 * interval '1 second'
   /* and nothing refers to it */
