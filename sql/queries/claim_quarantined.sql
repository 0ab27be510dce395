-- Take the one quarantined row. Where its lane may not give it now, put it off until it may.
WITH claimed AS (
    UPDATE pggit.alert_delivery_queue q
       SET delivery_status = 'sending', worker_id = %(worker_id)s, leased_by = %(incarnation)s,
           lease_token = %(token)s, lease_until = now() + %(lease_s)s * interval '1 second'
     WHERE q.delivery_id = %(delivery_id)s AND %(admitted)s
    RETURNING q.*
), put_off AS (
    -- A token that no worker holds marks the change as webhookd's own. To a change without one the
    -- trigger would respond as to an operator's, and make the row new again.
    UPDATE pggit.alert_delivery_queue q
       SET next_retry_at = to_timestamp(%(again_at)s), lease_token = -%(token)s
     WHERE q.delivery_id = %(delivery_id)s AND NOT %(admitted)s
), moved AS (
    UPDATE pggit.webhook_health_metrics h
       SET tokens = %(tokens)s::float8 - 1, tokens_at = now(), in_flight = %(in_flight)s::int + 1,
           circuit_state = CASE WHEN %(probe)s THEN 'half_open' ELSE h.circuit_state END,
           circuit_epoch = h.circuit_epoch + %(probe)s::int,
           circuit_until = CASE WHEN %(probe)s THEN c.lease_until ELSE h.circuit_until END,
           health_status = CASE WHEN %(probe)s THEN 'degraded' ELSE h.health_status END
      FROM claimed c
     WHERE h.webhook_id = c.webhook_id
), kept AS (
    -- If the row kills this worker, no other worker follows before the lease has expired.
    UPDATE pggit.chores
       SET last_run_at = greatest(last_run_at, c.lease_until)
      FROM claimed c
     WHERE chore = 'quarantine'
)
SELECT {delivery_expressions} FROM claimed
