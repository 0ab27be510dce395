-- Take new rows of webhooks that are not registered out of queue_new, at most %(rows)s of them from
-- the webhook %(first)s on. Webhooks with a lane are left to the claim. Rows that others have
-- locked are left for the next time. Returns the webhook of each row.
UPDATE pggit.alert_delivery_queue
   SET routed = true
 WHERE delivery_id = ANY (ARRAY(
    SELECT q.delivery_id
      FROM pggit.alert_delivery_queue q
     WHERE {new:q} AND q.webhook_id >= %(first)s
       AND NOT EXISTS (SELECT FROM pggit.webhooks w WHERE w.webhook_id = q.webhook_id)
       AND NOT EXISTS (SELECT FROM pggit.webhook_health_metrics h
                        WHERE h.webhook_id = q.webhook_id)
     ORDER BY q.webhook_id
     LIMIT %(rows)s
       FOR NO KEY UPDATE OF q SKIP LOCKED))
RETURNING webhook_id
