-- Remove the rows of workers whose death no supervisor noticed; their leases expire. A row goes
-- once a successor with the same name lives, else only after an hour: until then `status` and the
-- alerts must see that a worker is missing.
DELETE FROM pggit.workers w
 WHERE w.seen_at < now() - interval '1 hour'
    OR (w.seen_at < now() - {dead_after}
        AND EXISTS (SELECT FROM pggit.workers s
                     WHERE s.worker_id = w.worker_id AND s.seen_at > now() - {silent_after}
                       -- Without --node every host has a worker-1.
                       AND (s.host = w.host OR s.worker_id LIKE '%/%')))
