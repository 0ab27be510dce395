-- Lanes whose state may be wrong: parked although rows wait that nothing else will bring up (a trigger was off, a row was
-- locked when its lane was read), without a row of their own, or with leases counted. One probe a lane with waiting rows;
-- the suspects, which are few, are read one by one. What parks a lane keeps none of them waiting: only that there is none.
WITH RECURSIVE lane (webhook_id) AS (
    (SELECT q.webhook_id
       FROM pggit.alert_delivery_queue q
      WHERE q.routed AND q.delivery_status IN ('pending', 'retrying') AND q.leases_lost < 3
      ORDER BY q.webhook_id LIMIT 1)
    UNION ALL
    SELECT x.webhook_id
      FROM lane l
     CROSS JOIN LATERAL (
        SELECT q.webhook_id
          FROM pggit.alert_delivery_queue q
         WHERE q.routed AND q.delivery_status IN ('pending', 'retrying') AND q.leases_lost < 3
           AND q.webhook_id > l.webhook_id
         ORDER BY q.webhook_id LIMIT 1) x
)
SELECT l.webhook_id
  FROM lane l
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.webhook_id IS NULL
    OR (w.enabled AND h.runnable_at IS NULL)
    OR (w.enabled AND h.blocked_by IS NULL AND h.runnable_at > now()
        AND EXISTS (SELECT FROM pggit.alert_delivery_queue q
                     WHERE q.webhook_id = l.webhook_id AND q.routed AND q.delivery_status IN ('pending', 'retrying')
                       AND q.leases_lost < 3 AND q.next_retry_at <= now()))
UNION
SELECT h.webhook_id FROM pggit.webhook_health_metrics h WHERE h.in_flight > 0
UNION
SELECT q.webhook_id
  FROM pggit.alert_delivery_queue q
 WHERE q.delivery_status IN ('pending', 'retrying') AND q.leases_lost >= 3
   AND NOT EXISTS (SELECT FROM pggit.webhook_health_metrics h WHERE h.webhook_id = q.webhook_id)
