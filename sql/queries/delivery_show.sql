-- One delivery, without its body: to read that may fail.
SELECT delivery_id, alert_id, webhook_id, delivery_status, retry_count, max_retries, attempts,
       leases_lost, next_retry_at, created_at, first_attempted_at, attempted_at, delivered_at,
       worker_id, lease_until, body_bytes
  FROM pggit.alert_delivery_queue
 WHERE delivery_id = %(delivery_id)s
