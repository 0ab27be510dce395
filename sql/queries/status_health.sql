-- Registered webhooks by health.
SELECT coalesce(h.health_status, 'unknown') AS health_status, count(*) AS webhooks
  FROM pggit.webhooks w
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
 GROUP BY 1
 ORDER BY 1
