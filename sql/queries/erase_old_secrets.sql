-- Erase old secrets that have ended; they sign no longer. Some at a time, and none that a session
-- holds: the next run finds the rest.
UPDATE pggit.webhooks
   SET old_secret = NULL, old_secret_until = NULL
 WHERE webhook_id = ANY (ARRAY(
        SELECT webhook_id
          FROM pggit.webhooks
         WHERE old_secret_until <= now()
         ORDER BY old_secret_until
         LIMIT %(limit)s
           FOR NO KEY UPDATE SKIP LOCKED))
RETURNING webhook_id
