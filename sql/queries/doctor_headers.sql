-- The newest of the enabled webhooks with headers of their own.
SELECT webhook_id, headers::text
  FROM pggit.webhooks
 WHERE enabled AND headers IS NOT NULL
 ORDER BY webhook_id DESC
 LIMIT %(limit)s
