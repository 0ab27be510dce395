-- Held lanes after this webhook, and the registry's rows of their webhooks (NULLs: not registered).
SELECT h.webhook_id, {settings_columns:w}
  FROM pggit.webhook_health_metrics h
  LEFT JOIN pggit.webhooks w USING (webhook_id)
 WHERE h.blocked_reason IS NOT NULL AND h.webhook_id > %(after)s
 ORDER BY h.webhook_id
 LIMIT %(limit)s
