-- Hold the duty with the flag down: inserts notify no worker, this one looks every few
-- milliseconds.
WITH mine AS (
    UPDATE pggit.workers w SET looking = true
     WHERE w.incarnation = %(incarnation)s
    RETURNING w.wake_number
)
SELECT setval('pggit.wake_flag', 1) FROM mine
