INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version)
VALUES (%(incarnation)s, %(worker_id)s, %(host)s, %(pid)s, %(version)s)
ON CONFLICT (incarnation) DO UPDATE SET seen_at = now()
RETURNING wake_number
