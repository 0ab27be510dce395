-- Remove the deliveries on the pages from %(first)s up to %(end)s that have been finished for
-- longer than they are kept. A row that others have locked stays until the next round. A keep of
-- NULL is for ever.
DELETE FROM pggit.alert_delivery_queue
 WHERE ctid = ANY (ARRAY(
    SELECT f.ctid
      FROM pggit.alert_delivery_queue f
     WHERE f.ctid >= %(first)s::tid AND f.ctid < %(end)s::tid
       AND CASE f.delivery_status
           WHEN 'delivered' THEN
                coalesce(greatest(f.ended_at, f.delivered_at), f.attempted_at, f.created_at)
                < now() - %(keep_delivered_s)s::float8 * interval '1 second'
           -- A row that failed after lost leases may never have been attempted, but it was due
           -- again after each.
           WHEN 'failed' THEN
                coalesce(greatest(f.ended_at, f.attempted_at,
                                  CASE WHEN f.leases_lost > 0 THEN f.next_retry_at END),
                         f.created_at)
                < now() - %(keep_failed_s)s::float8 * interval '1 second'
           ELSE false END
       /* and nothing refers to it */
       FOR UPDATE SKIP LOCKED))
