-- How many exchanges are really in flight for some webhooks. Read only where the lane's counter is
-- about to block the lane, or where a sweep repairs it.
SELECT webhook_id, count(*)::int
  FROM pggit.alert_delivery_queue
 WHERE delivery_status = 'sending' AND webhook_id = ANY (%(webhook_ids)s::bigint[])
 GROUP BY webhook_id
