-- Which of these lanes have due rows.
SELECT l.webhook_id
  FROM unnest(%(webhook_ids)s::bigint[]) AS l (webhook_id)
 WHERE EXISTS (SELECT FROM pggit.alert_delivery_queue w
                WHERE w.webhook_id = l.webhook_id AND w.routed AND w.delivery_status IN ('pending', 'retrying')
                  AND w.leases_lost < 3 AND w.next_retry_at <= now())
    OR EXISTS (SELECT FROM pggit.alert_delivery_queue n
                WHERE n.webhook_id = l.webhook_id AND NOT n.routed AND n.delivery_status IN ('pending', 'retrying')
                  AND n.next_retry_at BETWEEN to_timestamp(%(rows_floor)s) AND now())
