-- A webhook's secrets, its row locked, and whether the old one still signs (NULL: there is none).
-- By the clock, not by the transaction's start: the lock may have been waited for.
SELECT secret, old_secret, old_secret_until, old_secret_until > clock_timestamp() AS overlaps
  FROM pggit.webhooks
 WHERE webhook_id = %(webhook_id)s
   FOR NO KEY UPDATE
