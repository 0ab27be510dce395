-- What is really in flight for some webhooks: read only where the counter is about to block a lane or a sweep mends it.
SELECT webhook_id, count(*)::int
  FROM pggit.alert_delivery_queue
 WHERE delivery_status = 'sending' AND webhook_id = ANY (%(webhook_ids)s::bigint[])
 GROUP BY webhook_id
