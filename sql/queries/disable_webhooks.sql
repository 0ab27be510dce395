-- The receiver said 410 Gone.
UPDATE pggit.webhooks SET enabled = false, disabled_reason = %(reason)s
 WHERE webhook_id = ANY (%(webhook_ids)s::bigint[]) AND enabled
