-- Whoever changes the flag or who keeps the watch does it alone. The number is webhookd's own ("webh" in ASCII).
SELECT pg_advisory_xact_lock(2003132008)
