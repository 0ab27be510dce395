-- Pause or resume webhooks; returns the ids found.
UPDATE pggit.webhooks SET enabled = %(enabled)s, disabled_reason = %(reason)s
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[])
RETURNING webhook_id
