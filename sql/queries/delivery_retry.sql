-- Send deliveries again, delivered ones included; those that are being sent now are left alone.
-- Returns their ids and webhooks. A plain UPDATE: the schema's trigger makes the rows new again and
-- wakes the workers.
UPDATE pggit.alert_delivery_queue
   SET delivery_status = 'pending', retry_count = 0, next_retry_at = now()
 WHERE delivery_id = ANY (%(delivery_ids)s::bigint[]) AND delivery_status <> 'sending'
RETURNING delivery_id, webhook_id
