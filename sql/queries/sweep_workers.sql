-- Rows of workers that died without anybody seeing it. Their leases run out by themselves.
DELETE FROM pggit.workers WHERE seen_at < now() - interval '60 seconds'
