-- Look at the lanes of those of these webhooks that are registered.
UPDATE pggit.webhook_health_metrics h
   SET runnable_at = now()
  FROM pggit.webhooks w
 WHERE w.webhook_id = ANY (%(webhook_ids)s::bigint[]) AND h.webhook_id = w.webhook_id
   AND h.blocked_by IS NULL
