-- Which of these lanes have due rows. The floors: see claim.
SELECT l.webhook_id
  FROM unnest(%(webhook_ids)s::bigint[], %(floors)s::float8[]) AS l (webhook_id, floor)
 WHERE EXISTS (SELECT FROM pggit.alert_delivery_queue w
                WHERE w.webhook_id = l.webhook_id AND w.routed AND w.delivery_status IN ('pending', 'retrying')
                  AND w.leases_lost < 3 AND w.next_retry_at BETWEEN to_timestamp(l.floor) AND now())
    OR EXISTS (SELECT FROM pggit.alert_delivery_queue n
                WHERE n.webhook_id = l.webhook_id AND NOT n.routed AND n.delivery_status IN ('pending', 'retrying')
                  AND n.next_retry_at BETWEEN to_timestamp(%(rows_floor)s) AND now())
