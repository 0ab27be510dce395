-- Which of these lanes have due rows. The low-water marks: see claim.
SELECT l.webhook_id
  FROM unnest(%(webhook_ids)s::bigint[], %(marks)s::float8[]) AS l (webhook_id, mark)
 WHERE EXISTS (SELECT FROM pggit.alert_delivery_queue w
                WHERE w.webhook_id = l.webhook_id AND {routed:w}
                  AND w.next_retry_at BETWEEN to_timestamp(l.mark) AND now())
    OR EXISTS (SELECT FROM pggit.alert_delivery_queue n
                WHERE n.webhook_id = l.webhook_id AND {new:n}
                  AND n.next_retry_at BETWEEN to_timestamp(%(rows_from)s) AND now())
