-- The chore takes long, or took long: it is due again so much later than usual.
UPDATE pggit.chores SET last_run_at = now() + %(seconds)s * interval '1 second'
 WHERE chore = %(chore)s
