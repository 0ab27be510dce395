-- One worker's sign of life every few seconds; with it, whether its row is still there, whether anybody keeps the watch, and the
-- chores that fall to it now (each to one worker of the fleet).
WITH mine AS (
    UPDATE pggit.workers w SET seen_at = now() WHERE w.incarnation = %(incarnation)s RETURNING w.incarnation
), due AS (
    UPDATE pggit.chores c
       SET last_run_at = now()
     WHERE c.chore = ANY (ARRAY(
        SELECT d.chore
          FROM pggit.chores d
         WHERE d.last_run_at < now() - (%(intervals_s)s::jsonb ->> d.chore)::float8 * interval '1 second'
           FOR UPDATE SKIP LOCKED))
    RETURNING c.chore
)
SELECT EXISTS (SELECT FROM mine),
       EXISTS (SELECT FROM pggit.workers w
                WHERE w.seen_at > now() - interval '20 seconds'
                  AND (w.looking OR w.wake_number = (SELECT last_value FROM pggit.wake_flag))),
       ARRAY(SELECT chore FROM due)
