-- Registered webhooks that the configuration holds, and what waits for them.
SELECT h.webhook_id, h.blocked_reason AS reason,
       (SELECT count(*) FROM pggit.v_waiting_deliveries q
         WHERE q.webhook_id = h.webhook_id) AS waiting
  FROM pggit.webhook_health_metrics h
  JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.blocked_reason IS NOT NULL
 ORDER BY h.webhook_id
 LIMIT %(limit)s
