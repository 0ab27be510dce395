-- Register a webhook; no row comes back if the id is taken.
INSERT INTO pggit.webhooks (webhook_id, {webhook_columns})
VALUES (%(webhook_id)s, {webhook_parameters})
ON CONFLICT (webhook_id) DO NOTHING
RETURNING webhook_id
