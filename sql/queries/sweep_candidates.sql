-- Lanes whose state may be wrong: without a row of their own; with leases counted; or parked
-- although rows wait that no timer brings up (a trigger was off, or a row was locked when its lane
-- was read). One probe a lane with routed rows. The rows in quarantine, which are few, are read one
-- by one: a parked lane keeps none of them waiting, only a missing one does. Held lanes have no
-- timer on purpose; the chore HeldLanes looks after them.
WITH RECURSIVE lane (webhook_id) AS (
    (SELECT q.webhook_id
       FROM pggit.alert_delivery_queue q
      WHERE {routed:q}
      ORDER BY q.webhook_id LIMIT 1)
    UNION ALL
    SELECT x.webhook_id
      FROM lane l
     CROSS JOIN LATERAL (
        SELECT q.webhook_id
          FROM pggit.alert_delivery_queue q
         WHERE {routed:q} AND q.webhook_id > l.webhook_id
         ORDER BY q.webhook_id LIMIT 1) x
)
SELECT l.webhook_id
  FROM lane l
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.webhook_id IS NULL
    OR (w.enabled AND h.runnable_at IS NULL AND h.blocked_reason IS NULL)
    OR (w.enabled AND h.blocked_by IS NULL AND h.runnable_at > now()
        AND EXISTS (SELECT FROM pggit.alert_delivery_queue q
                     WHERE q.webhook_id = l.webhook_id AND {routed:q}
                       AND q.next_retry_at <= now()))
UNION
SELECT h.webhook_id FROM pggit.webhook_health_metrics h WHERE h.in_flight > 0
UNION
SELECT q.webhook_id
  FROM pggit.alert_delivery_queue q
 WHERE {quarantined:q}
   AND NOT EXISTS (SELECT FROM pggit.webhook_health_metrics h WHERE h.webhook_id = q.webhook_id)
