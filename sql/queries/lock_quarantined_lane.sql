-- The earliest due row in quarantine, and its lane, both locked. One that was not measured yet is
-- left to the chore that measures bodies.
SELECT extract(epoch FROM now())::float8, q.delivery_id, {lane_columns:h}
  FROM pggit.alert_delivery_queue q
  JOIN pggit.webhook_health_metrics h USING (webhook_id)
 WHERE {quarantined:q} AND q.next_retry_at <= now() AND {sendable:q}
 ORDER BY q.next_retry_at
 LIMIT 1
   FOR NO KEY UPDATE OF h, q SKIP LOCKED
