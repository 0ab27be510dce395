SELECT m.webhook_id
  FROM unnest(%(webhook_ids)s::bigint[]) AS m (webhook_id)
 WHERE NOT EXISTS (SELECT FROM pggit.webhook_health_metrics h WHERE h.webhook_id = m.webhook_id)
