-- Webhooks whose counter of exchanges in flight is not the number of their leases. Claims and
-- records change both at once.
SELECT coalesce(h.webhook_id, q.webhook_id) AS webhook_id,
       coalesce(h.in_flight, 0) AS in_flight, coalesce(q.leases, 0) AS leases
  FROM (SELECT webhook_id, in_flight FROM pggit.webhook_health_metrics WHERE in_flight <> 0) h
  FULL JOIN (SELECT webhook_id, count(*)::int AS leases
               FROM pggit.alert_delivery_queue
              WHERE delivery_status = 'sending'
              GROUP BY webhook_id) q USING (webhook_id)
 WHERE h.in_flight IS DISTINCT FROM q.leases
 ORDER BY webhook_id
