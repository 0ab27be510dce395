-- Repair the lanes that lock_recorded_lanes just locked: count their leases, and let the next claim
-- look at the parked ones.
UPDATE pggit.webhook_health_metrics h
   SET in_flight = coalesce(c.leases, 0),
       runnable_at = CASE WHEN w.enabled AND h.blocked_reason IS NULL
                               AND (h.runnable_at IS NULL OR h.blocked_by IS NULL)
                          THEN least(h.runnable_at, now())
                          ELSE h.runnable_at END
  FROM unnest(%(webhook_ids)s::bigint[]) AS s (webhook_id)
  LEFT JOIN (SELECT q.webhook_id, count(*)::int AS leases
               FROM pggit.alert_delivery_queue q
              WHERE q.delivery_status = 'sending'
              GROUP BY q.webhook_id) c USING (webhook_id)
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.webhook_id = s.webhook_id
   AND (h.in_flight <> coalesce(c.leases, 0)
        OR (w.enabled AND h.blocked_reason IS NULL
            AND (h.runnable_at IS NULL OR (h.blocked_by IS NULL AND h.runnable_at > now()))))
