-- What this worker did since its last report, added to the current minute.
INSERT INTO pggit.worker_minutes AS m
       (minute, worker_id, delivered, failed, timeouts, circuit_opens, rate_limit_hits, durations,
        slowest_seconds)
VALUES (date_trunc('minute', now()), %(worker_id)s, %(delivered)s, %(failed)s, %(timeouts)s,
        %(circuit_opens)s, %(rate_limit_hits)s, %(durations)s::bigint[], %(slowest_s)s)
ON CONFLICT (minute, worker_id) DO UPDATE
   SET delivered = m.delivered + excluded.delivered,
       failed = m.failed + excluded.failed,
       timeouts = m.timeouts + excluded.timeouts,
       circuit_opens = m.circuit_opens + excluded.circuit_opens,
       rate_limit_hits = m.rate_limit_hits + excluded.rate_limit_hits,
       durations = ARRAY(
           SELECT coalesce(old, 0) + coalesce(new, 0)
             FROM unnest(m.durations, excluded.durations) WITH ORDINALITY AS d (old, new, place)
            ORDER BY place),
       slowest_seconds = greatest(m.slowest_seconds, excluded.slowest_seconds)
