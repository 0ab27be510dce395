-- A day and an hour of worker_minutes is kept: a dashboard of the last 24 hours is whole then.
DELETE FROM pggit.worker_minutes WHERE minute < now() - interval '25 hours'
