-- Give the turn back: it rests for so long, then any worker may take it.
UPDATE pggit.chores
   SET last_run_at = now() + %(seconds)s * interval '1 second'
 WHERE chore = 'quarantine'
