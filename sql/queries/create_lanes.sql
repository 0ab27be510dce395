-- Waits while another transaction inserts the same lane: never run it while holding locks, nor
-- without a lock_timeout.
INSERT INTO pggit.webhook_health_metrics (webhook_id, runnable_at)
SELECT missing.webhook_id, now()
  FROM unnest(%(webhook_ids)s::bigint[]) AS missing (webhook_id)
 WHERE NOT EXISTS (SELECT FROM pggit.webhook_health_metrics h
                    WHERE h.webhook_id = missing.webhook_id)
   AND (NOT %(registered_only)s
        OR EXISTS (SELECT FROM pggit.webhooks w WHERE w.webhook_id = missing.webhook_id))
ON CONFLICT (webhook_id) DO NOTHING
