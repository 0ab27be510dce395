-- Register a webhook; no row comes back if the id is taken.
INSERT INTO pggit.webhooks (webhook_id, url, secret, headers, {limit_columns})
VALUES (%(webhook_id)s, %(url)s, %(secret)s, %(headers)s::jsonb, {limit_parameters})
ON CONFLICT (webhook_id) DO NOTHING
RETURNING webhook_id
