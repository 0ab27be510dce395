INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, metrics_address, options)
VALUES (%(incarnation)s, %(worker_id)s, %(host)s, %(pid)s, %(version)s, %(metrics_address)s,
        %(options)s::jsonb)
ON CONFLICT (incarnation) DO UPDATE SET seen_at = now()
RETURNING wake_number
