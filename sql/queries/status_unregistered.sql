-- Webhooks that deliveries wait for although they are not registered.
SELECT q.webhook_id, count(*) AS waiting
  FROM pggit.v_waiting_deliveries q
 WHERE NOT EXISTS (SELECT FROM pggit.webhooks w WHERE w.webhook_id = q.webhook_id)
 GROUP BY q.webhook_id
 ORDER BY count(*) DESC, q.webhook_id
 LIMIT %(limit)s
