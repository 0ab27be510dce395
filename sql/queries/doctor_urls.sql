-- The newest of the enabled webhooks, and where they go.
SELECT webhook_id, url FROM pggit.webhooks WHERE enabled ORDER BY webhook_id DESC LIMIT %(limit)s
