-- Have workers look at these held lanes again. The look decides, and stores what it finds; until
-- then the lanes stay held. Lanes that others have locked are being looked at, or come next time.
-- (blocked_by: in case that plain SQL has changed it; the look takes the reason out.)
UPDATE pggit.webhook_health_metrics h
   SET runnable_at = now(), blocked_by = {configuration}
 WHERE h.webhook_id = ANY (ARRAY(
    SELECT l.webhook_id
      FROM pggit.webhook_health_metrics l
     WHERE l.webhook_id = ANY (%(webhook_ids)s::bigint[]) AND l.blocked_reason IS NOT NULL
       FOR NO KEY UPDATE SKIP LOCKED))
RETURNING h.webhook_id
