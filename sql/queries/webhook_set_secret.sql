-- Replace a webhook's secret: attempts claimed from now on are signed with the new one.
UPDATE pggit.webhooks SET secret = %(secret)s WHERE webhook_id = %(webhook_id)s RETURNING webhook_id
