-- Remove a webhook from the registry. Its deliveries, attempt log and health stay.
DELETE FROM pggit.webhooks WHERE webhook_id = %(webhook_id)s RETURNING webhook_id
