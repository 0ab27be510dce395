-- Which of these webhooks have no lane.
SELECT m.webhook_id
  FROM unnest(%(webhook_ids)s::bigint[]) AS m (webhook_id)
 WHERE m.webhook_id <> ALL (ARRAY(
    SELECT h.webhook_id
      FROM pggit.webhook_health_metrics h
     WHERE h.webhook_id = ANY (%(webhook_ids)s::bigint[])))
