-- End claims: the fence (id and token), the row's new state, the attempt log and the count of finished rows, in one statement.
-- Returns the claims that were still this worker's (id and token: one batch may hold a late result beside that of a later
-- claim); what is missing was re-claimed, reaped, deleted or re-queued meanwhile.
WITH result AS (
    SELECT *
      FROM unnest(%(delivery_ids)s::bigint[], %(tokens)s::bigint[], %(statuses)s::text[], %(delays)s::float8[],
                  %(retries)s::int[], %(losses)s::int[], %(ages)s::float8[], %(webhook_ids)s::bigint[], %(events)s::text[],
                  %(details)s::text[], %(http_statuses)s::int[], %(times_ms)s::float8[])
           AS r (delivery_id, token, status, delay_s, retries, losses, age_s, webhook_id, event, details, http_status, time_ms)
), settled AS (
    UPDATE pggit.alert_delivery_queue q
       SET delivery_status = r.status,
           delivered_at = CASE WHEN r.status = 'delivered' THEN now() ELSE q.delivered_at END,
           next_retry_at = CASE WHEN r.delay_s IS NULL THEN q.next_retry_at ELSE now() + r.delay_s * interval '1 second' END,
           retry_count = q.retry_count + r.retries,
           leases_lost = q.leases_lost + r.losses,
           attempts = q.attempts + (r.age_s IS NOT NULL)::int,
           attempted_at = coalesce(now() - r.age_s * interval '1 second', q.attempted_at),
           first_attempted_at = coalesce(q.first_attempted_at, now() - r.age_s * interval '1 second'),
           lease_token = NULL, lease_until = NULL, leased_by = NULL
      FROM result r
     -- IS NOT DISTINCT FROM, so that no planner takes the partial index of leased rows for this: with statistics from an
     -- idle queue that index looks empty, and is then read whole for every result.
     WHERE q.delivery_id = ANY (%(delivery_ids)s::bigint[])  -- looked up, whatever the planner believes of the table
       AND q.delivery_id = r.delivery_id AND q.lease_token = r.token AND q.delivery_status IS NOT DISTINCT FROM 'sending'
    RETURNING r.*
), counted AS (
    INSERT INTO pggit.finished_counts (delivered, failed)
    SELECT count(*) FILTER (WHERE status = 'delivered'), count(*) FILTER (WHERE status = 'failed')
      FROM settled
    HAVING count(*) FILTER (WHERE status IN ('delivered', 'failed')) > 0
), logged AS (
    INSERT INTO pggit.alert_delivery_log
           (delivery_id, webhook_id, event_type, event_details, http_status, response_time_ms, worker_id)
    SELECT delivery_id, webhook_id, event, details::jsonb, http_status, time_ms, %(worker_id)s
      FROM settled
     WHERE event IS NOT NULL
)
SELECT delivery_id, token FROM settled
