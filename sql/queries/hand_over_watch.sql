-- Say that this worker has no room. If it holds the duty to be notified, give the duty to another
-- worker that has room, and wake that one. If there is none, the duty is free: the first worker to
-- have room takes it. Runs after lock_watch.
WITH mine AS (
    SELECT w.wake_number,
           w.looking OR w.wake_number = (SELECT last_value FROM pggit.wake_flag) AS keeps
      FROM pggit.workers w
     WHERE w.incarnation = %(incarnation)s
), said AS (
    UPDATE pggit.workers w SET has_room = false, looking = false
     WHERE w.incarnation = %(incarnation)s
), heir AS (
    SELECT w.wake_number
      FROM pggit.workers w
     WHERE w.incarnation <> %(incarnation)s AND w.has_room AND w.seen_at > now() - {silent_after}
     ORDER BY random()
     LIMIT 1
), handed AS MATERIALIZED (
    SELECT setval('pggit.wake_flag', coalesce((SELECT wake_number FROM heir), 1)) AS flag
      FROM mine
     WHERE mine.keeps
)
SELECT pg_notify('webhookd_wake', flag::text) FROM handed WHERE flag > 1
