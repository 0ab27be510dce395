-- What a claim of these lanes may have taken: the first due rows of each.
SELECT d.delivery_id
  FROM unnest(%(webhook_ids)s::bigint[]) AS l (webhook_id), LATERAL (
    (SELECT w.delivery_id
       FROM pggit.alert_delivery_queue w
      WHERE w.webhook_id = l.webhook_id AND {routed:w} AND w.next_retry_at <= now()
      ORDER BY w.next_retry_at, w.delivery_id
      LIMIT %(limit)s)
    UNION ALL
    (SELECT n.delivery_id
       FROM pggit.alert_delivery_queue n
      WHERE n.webhook_id = l.webhook_id AND {new:n} AND n.next_retry_at <= now()
      ORDER BY n.next_retry_at, n.delivery_id
      LIMIT %(limit)s)) d
