-- The newest of the enabled webhooks that are signed.
SELECT webhook_id, secret
  FROM pggit.webhooks
 WHERE enabled AND secret IS NOT NULL
 ORDER BY webhook_id DESC
 LIMIT %(limit)s
