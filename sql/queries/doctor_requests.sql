-- The newest of the enabled webhooks, each after the reason why workers hold it (NULL: they do
-- not).
SELECT h.blocked_reason, w.webhook_id, {settings_columns:w}
  FROM pggit.webhooks w
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
 WHERE w.enabled
 ORDER BY w.webhook_id DESC
 LIMIT %(limit)s
