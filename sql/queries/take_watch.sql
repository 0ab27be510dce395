-- Raise the flag in this worker's name, unless another living worker keeps the watch already (named by the flag, or looking).
-- Runs after lock_watch, so that it sees what the one before decided. true: this worker keeps the watch now.
WITH other AS (
    SELECT EXISTS (
        SELECT FROM pggit.workers w
         WHERE w.incarnation <> %(incarnation)s AND w.seen_at > now() - interval '20 seconds'
           AND (w.looking OR w.wake_number = (SELECT last_value FROM pggit.wake_flag))) AS keeps
), mine AS (
    UPDATE pggit.workers w SET has_room = true, looking = false WHERE w.incarnation = %(incarnation)s
    RETURNING w.wake_number
)
SELECT CASE WHEN other.keeps THEN false ELSE setval('pggit.wake_flag', mine.wake_number) > 0 END
  FROM mine, other
