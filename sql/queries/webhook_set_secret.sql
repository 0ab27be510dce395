-- Replace a webhook's secret: attempts claimed from now on are signed with the new one, and for
-- some time with the old one too, if there is one.
UPDATE pggit.webhooks
   SET secret = %(secret)s,
       old_secret = %(old_secret)s,
       old_secret_until = CASE WHEN %(old_secret)s::text IS NOT NULL
                               THEN clock_timestamp() + %(overlap_s)s * interval '1 second' END
 WHERE webhook_id = %(webhook_id)s
RETURNING old_secret_until
