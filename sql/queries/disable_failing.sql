-- Disable webhooks that have only failed for %(after_s)s seconds. Their last failure must be that
-- long after the first one: without attempts in between, nothing is known of the receiver. Another
-- sender's successes (update_webhook_health) show in last_success_at only. A registry row that
-- another transaction is changing is skipped; the next run finds it again.
UPDATE pggit.webhooks w
   SET enabled = false,
       disabled_reason = 'only failures since '
           || to_char(f.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
           || coalesce('; the last one: ' || f.last_error, '')
  FROM (SELECT r.webhook_id, h.failing_since,
               -- A record writes both with the same time, so the index of failures finds the row.
               (SELECT l.event_details ->> 'reason'
                  FROM pggit.alert_delivery_log l
                 WHERE l.created_at = h.last_failure_at AND l.webhook_id = h.webhook_id
                   AND l.event_type IN ('retrying', 'failed')
                 LIMIT 1) AS last_error
          FROM pggit.webhook_health_metrics h
          JOIN pggit.webhooks r USING (webhook_id)
         WHERE r.enabled
           AND h.last_failure_at - h.failing_since >= %(after_s)s * interval '1 second'
           AND (h.last_success_at < h.failing_since) IS NOT FALSE
         ORDER BY r.webhook_id
         LIMIT 1000
           FOR NO KEY UPDATE OF r SKIP LOCKED) f
 WHERE w.webhook_id = f.webhook_id
RETURNING w.webhook_id, w.disabled_reason
