-- The receiver answered 410 Gone. A registry row that another transaction is changing is skipped
-- (the next 410 tries again): to wait for it while holding lanes would delay the results of all
-- workers, and could deadlock with the trigger of that change.
UPDATE pggit.webhooks SET enabled = false, disabled_reason = %(reason)s
 WHERE webhook_id = ANY (ARRAY(SELECT w.webhook_id
                                 FROM pggit.webhooks w
                                WHERE w.webhook_id = ANY (%(webhook_ids)s::bigint[]) AND w.enabled
                                ORDER BY w.webhook_id
                                  FOR NO KEY UPDATE SKIP LOCKED))
RETURNING webhook_id
