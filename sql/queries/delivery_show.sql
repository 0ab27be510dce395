-- One delivery, its body as it is sent.
SELECT delivery_id, alert_id, webhook_id, delivery_status, retry_count, max_retries, attempts,
       leases_lost, next_retry_at, created_at, first_attempted_at, attempted_at, delivered_at,
       worker_id, lease_until, message_body::text AS message_body
  FROM pggit.alert_delivery_queue
 WHERE delivery_id = %(delivery_id)s
