-- The registered webhooks, all where the limit is NULL, with their health, their circuit, and how
-- many deliveries wait for each.
SELECT w.webhook_id, w.url, w.enabled, w.disabled_reason,
       coalesce(h.health_status, 'unknown') AS health_status,
       coalesce(h.circuit_state, 'closed') AS circuit_state,
       coalesce(h.consecutive_failures, 0) AS consecutive_failures,
       coalesce(q.waiting, 0) AS waiting, h.blocked_reason
  FROM pggit.webhooks w
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
  LEFT JOIN (SELECT webhook_id, count(*) AS waiting
               FROM pggit.alert_delivery_queue
              WHERE {undelivered}
              GROUP BY webhook_id) q USING (webhook_id)
 ORDER BY w.webhook_id
 LIMIT %(limit)s::bigint
