-- Lanes whose state may be wrong: of a registered webhook and without a row of their own; with
-- leases counted; or parked although rows wait that no timer brings up (a trigger was off, a row
-- was locked when its lane was read, or its INSERT was open while its webhook was registered). At
-- most one probe of the queue for a registered webhook, and none for others: a million ids that
-- nobody registered cost nothing. LIMIT keeps the probes; a semi-join could read all that waits.
-- Held lanes (`blocked_reason`) have no timer on purpose.
-- The rows in quarantine, which are few, are read one by one: a parked lane keeps none of them
-- waiting, only a missing one does.
SELECT w.webhook_id
  FROM pggit.webhooks w
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
 CROSS JOIN LATERAL (SELECT FROM pggit.alert_delivery_queue q
                      WHERE q.webhook_id = w.webhook_id AND {routed:q}
                      LIMIT 1) waiting
 WHERE h.webhook_id IS NULL OR (w.enabled AND h.runnable_at IS NULL AND h.blocked_reason IS NULL)
 UNION ALL
SELECT w.webhook_id
  FROM pggit.webhooks w
  JOIN pggit.webhook_health_metrics h USING (webhook_id)
 CROSS JOIN LATERAL (SELECT FROM pggit.alert_delivery_queue q
                      WHERE q.webhook_id = w.webhook_id AND {routed:q}
                        AND q.next_retry_at <= now()
                      LIMIT 1) due
 WHERE w.enabled AND h.blocked_by IS NULL AND h.runnable_at > now()
 UNION
SELECT h.webhook_id FROM pggit.webhook_health_metrics h WHERE h.in_flight > 0
 UNION
SELECT q.webhook_id
  FROM pggit.alert_delivery_queue q
 WHERE {quarantined:q}
   AND NOT EXISTS (SELECT FROM pggit.webhook_health_metrics h WHERE h.webhook_id = q.webhook_id)
