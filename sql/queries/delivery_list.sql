-- The newest deliveries, of one status or webhook where asked for.
SELECT delivery_id, alert_id, webhook_id, delivery_status, retry_count, max_retries, attempts,
       next_retry_at, created_at, attempted_at, delivered_at, worker_id
  FROM pggit.alert_delivery_queue
 WHERE (%(status)s::text IS NULL OR delivery_status = %(status)s)
   AND (%(webhook_id)s::bigint IS NULL OR webhook_id = %(webhook_id)s)
 ORDER BY delivery_id DESC
 LIMIT %(limit)s
