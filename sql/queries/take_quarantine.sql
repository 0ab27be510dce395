-- Take the turn to try rows in quarantine, unless another worker has it or it rests. Returns
-- whether this worker has it now, and otherwise in how many seconds it is free.
WITH taken AS (
    UPDATE pggit.chores
       SET last_run_at = now() + %(seconds)s * interval '1 second'
     WHERE chore = 'quarantine' AND last_run_at <= now()
    RETURNING chore
)
SELECT EXISTS (SELECT FROM taken), extract(epoch FROM last_run_at - now())::float8
  FROM pggit.chores
 WHERE chore = 'quarantine'
