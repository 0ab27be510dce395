-- Raise the flag in this worker's name, unless another living worker holds the duty to be notified
-- already (the flag names it, or it looks by itself). Runs after lock_watch, so that it sees what
-- the transaction before decided. true: this worker holds the duty now.
WITH other AS (
    SELECT EXISTS (
        SELECT FROM pggit.workers w
         WHERE w.incarnation <> %(incarnation)s AND w.seen_at > now() - {silent_after}
           AND (w.looking OR w.wake_number = (SELECT last_value FROM pggit.wake_flag))) AS keeps
), mine AS (
    UPDATE pggit.workers w SET has_room = true, looking = false
     WHERE w.incarnation = %(incarnation)s
    RETURNING w.wake_number
)
SELECT CASE WHEN other.keeps THEN false ELSE setval('pggit.wake_flag', mine.wake_number) > 0 END
  FROM mine, other
