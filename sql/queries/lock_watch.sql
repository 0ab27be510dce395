-- The flag, and who holds the duty to be notified, change under this lock, one change at a time.
-- The number is webhookd's own ("webh" in ASCII).
SELECT pg_advisory_xact_lock(2003132008)
