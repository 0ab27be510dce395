-- The newest of the enabled webhooks that are signed or have headers of their own.
SELECT webhook_id, {settings_columns}
  FROM pggit.webhooks
 WHERE enabled AND (secret IS NOT NULL OR headers IS NOT NULL)
 ORDER BY webhook_id DESC
 LIMIT %(limit)s
