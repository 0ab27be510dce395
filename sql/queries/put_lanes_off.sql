-- Have no worker claim from these lanes for a while. Rows that no claim has looked at yet become
-- waiting ones: those are found by their lane's timer only.
WITH routed AS (
    UPDATE pggit.alert_delivery_queue q
       SET routed = true
     WHERE q.delivery_id = ANY (ARRAY(
        SELECT n.delivery_id
          FROM pggit.alert_delivery_queue n
         WHERE n.webhook_id = ANY (%(webhook_ids)s::bigint[]) AND {new:n}
         LIMIT 1000
           FOR NO KEY UPDATE SKIP LOCKED))
)
UPDATE pggit.webhook_health_metrics h
   SET runnable_at = now() + %(seconds)s * interval '1 s'
 WHERE h.webhook_id = ANY (ARRAY(
    SELECT l.webhook_id
      FROM pggit.webhook_health_metrics l
     WHERE l.webhook_id = ANY (%(webhook_ids)s::bigint[])
     ORDER BY l.webhook_id
       FOR NO KEY UPDATE))
