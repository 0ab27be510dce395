-- End claims: the fence (id and token), the row's new state, the attempt log and the count of
-- finished rows, in one statement. Returns the claims that were still this worker's. What is
-- missing was claimed again, reaped, deleted or re-queued meanwhile; this worker must not overwrite
-- it. (Id and token come back: one batch may hold a late result beside that of a later claim.)
WITH result AS (
    SELECT *
      FROM {settled_claims}
), settled AS (
    UPDATE pggit.alert_delivery_queue q
       SET delivery_status = r.status,
           delivered_at = CASE WHEN r.status = 'delivered' THEN now() ELSE q.delivered_at END,
           next_retry_at = CASE WHEN r.delay_s IS NULL THEN q.next_retry_at
                                ELSE now() + r.delay_s * interval '1 second' END,
           retry_count = q.retry_count + r.retries,
           leases_lost = q.leases_lost + r.losses,
           attempts = q.attempts + (r.age_s IS NOT NULL)::int,
           attempted_at = coalesce(now() - r.age_s * interval '1 second', q.attempted_at),
           first_attempted_at = coalesce(q.first_attempted_at,
                                         now() - r.age_s * interval '1 second'),
           lease_token = NULL, lease_until = NULL, leased_by = NULL
      FROM result r
     -- The list has the rows looked up by their key. IS NOT DISTINCT FROM keeps the planner off the
     -- partial index of leased rows: statistics from an idle queue call that index empty, and then
     -- it is read whole for every result.
     WHERE q.delivery_id = ANY (%(delivery_ids)s::bigint[])
       AND q.delivery_id = r.delivery_id AND q.lease_token = r.token
       AND q.delivery_status IS NOT DISTINCT FROM 'sending'
    RETURNING r.*
), counted AS (
    INSERT INTO pggit.finished_counts (delivered, failed)
    SELECT count(*) FILTER (WHERE status = 'delivered'), count(*) FILTER (WHERE status = 'failed')
      FROM settled
    HAVING count(*) FILTER (WHERE status IN ('delivered', 'failed')) > 0
), logged AS (
    INSERT INTO pggit.alert_delivery_log
           (delivery_id, webhook_id, event_type, event_details, http_status, response_time_ms,
            worker_id)
    SELECT delivery_id, webhook_id, event, details::jsonb, http_status, time_ms, %(worker_id)s
      FROM settled
     WHERE event IS NOT NULL
)
SELECT delivery_id, token FROM settled
