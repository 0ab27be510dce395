-- One webhook's trouble costs the others nothing, and an operator's mistake holds deliveries: it
-- never fails them (docs/reliability.md, "Neighbours").
-- oldest webhookd: 0.1.0

-----------------------------------------------------------------------------------------------
-- Retries: NULL in a row means what the webhook says, then the configuration.

ALTER TABLE pggit.webhooks
    ADD COLUMN max_retries integer CHECK (max_retries BETWEEN 0 AND 1000),
    ADD COLUMN retry_factor double precision CHECK (retry_factor >= 1 AND retry_factor <= 100);
ALTER TABLE pggit.alert_delivery_queue
    ALTER COLUMN max_retries DROP NOT NULL,
    ALTER COLUMN max_retries DROP DEFAULT;
-- Since when a webhook has only failed; NULL while its last attempt was a success.
ALTER TABLE pggit.webhook_health_metrics ADD COLUMN failing_since timestamptz;

-----------------------------------------------------------------------------------------------
-- Held lanes: the webhook's row, or the options in force, rule out every request.

ALTER TABLE pggit.webhook_health_metrics
    ADD COLUMN blocked_reason text,
    DROP CONSTRAINT webhook_health_metrics_blocked_by_check,
    ADD CONSTRAINT blocked_by_is_known CHECK (blocked_by IN (
        'unregistered', 'paused', 'configuration', 'circuit', 'hold', 'rate', 'in_flight'));
-- The options of a running worker that decide about delivery. Commands judge by them.
ALTER TABLE pggit.workers ADD COLUMN options jsonb NOT NULL DEFAULT '{}';

-----------------------------------------------------------------------------------------------
-- Slow lanes: how long an exchange takes (a mean that follows the last ones), and whether that is
-- so long that the lane must leave slots to others.

ALTER TABLE pggit.webhook_health_metrics
    ADD COLUMN exchange_seconds double precision,
    ADD COLUMN slow boolean NOT NULL DEFAULT false;

-----------------------------------------------------------------------------------------------
-- Two secrets: both sign until the older one ends.

ALTER TABLE pggit.webhooks
    ADD COLUMN old_secret text,
    ADD COLUMN old_secret_until timestamptz;

-----------------------------------------------------------------------------------------------
-- What people call a webhook. An earlier pggit may have such columns.

ALTER TABLE pggit.webhooks
    ADD COLUMN IF NOT EXISTS name text,
    ADD COLUMN IF NOT EXISTS uid text,
    ADD COLUMN IF NOT EXISTS tenant text NOT NULL DEFAULT 'default',
    ADD COLUMN IF NOT EXISTS labels jsonb;

-----------------------------------------------------------------------------------------------
-- What producers may write, and how large. body_bytes: bytes of message_body as text; NULL: not
-- measured yet.

ALTER TABLE pggit.installation ADD COLUMN max_body_bytes bigint NOT NULL DEFAULT 1048576;
ALTER TABLE pggit.alert_delivery_queue ADD COLUMN body_bytes bigint;

-----------------------------------------------------------------------------------------------
-- Poison: bodies that are huge as text, or that cannot be read at all.

-- One worker of the fleet at a time tries rows in quarantine: not before last_run_at.
INSERT INTO pggit.chores (chore) VALUES ('measure_bodies'), ('quarantine');

-- Measure the bodies of those rows that wait, one at a time, for a tenth of a second or until the
-- statement's time is over. A claim takes only rows whose body_bytes it knows, so no claim reads a
-- body that is too large.
--
-- A row ends as failed where its text is larger than p_largest, or where reading it raises what no
-- second try can change. A row that takes too long, or for which the server lacks memory, goes into
-- quarantine; a call with p_last (which a worker makes for one row, with more time) ends it.
-- Returns the rows that ended, with the reason, and those that went into quarantine, with NULL.
--
-- Without p_again only rows are read that were not measured yet, or are too large.
CREATE FUNCTION pggit.measure_bodies(
    p_delivery_ids bigint[], p_largest bigint, p_worker_id text, p_last boolean, p_again boolean)
RETURNS TABLE (delivery_id bigint, webhook_id bigint, reason text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    started  timestamptz := clock_timestamp();
    row_     record;
    bytes    bigint;
    why      text;
    canceled boolean := false;
    ids      bigint[] := '{}';  -- measured
    sizes    bigint[] := '{}';
    lanes    bigint[] := '{}';
    bad_ids  bigint[] := '{}';
    bad_webhooks bigint[] := '{}';
    bad_sizes    bigint[] := '{}';
    reasons      text[] := '{}';
BEGIN
    FOR row_ IN
        -- The locks keep other workers from reading the same body, and claims pass such rows by.
        SELECT q.delivery_id, q.webhook_id
          FROM pggit.alert_delivery_queue q
         WHERE q.delivery_id = ANY (p_delivery_ids)
           AND q.delivery_status IN ('pending', 'retrying')
           AND (p_again OR q.body_bytes IS NULL OR q.body_bytes > p_largest)
           FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        bytes := NULL;
        why := NULL;
        BEGIN
            SELECT octet_length(q.message_body::text) INTO bytes
              FROM pggit.alert_delivery_queue q
             WHERE q.delivery_id = row_.delivery_id;
            IF bytes > p_largest THEN
                why := format('the body is %s bytes as text, more than %s', bytes, p_largest);
            END IF;
        EXCEPTION
            WHEN query_canceled THEN
                canceled := true;
                why := CASE WHEN p_last THEN 'the body cannot be read: ' || SQLERRM END;
            WHEN OTHERS THEN
                -- 22: a character or a value; 54: more than the server can hold; XX: corrupted.
                -- 53 and 58: the server lacks memory, or the disk does not answer.
                IF SQLSTATE !~ '^(22|53|54|58|XX)' THEN
                    RAISE;
                END IF;
                IF p_last OR SQLSTATE !~ '^5[38]' THEN
                    why := 'the body cannot be read: ' || SQLERRM;
                END IF;
        END;
        IF bytes <= p_largest THEN
            ids := ids || row_.delivery_id;
            sizes := sizes || bytes;
            lanes := lanes || row_.webhook_id;
        ELSE
            bad_ids := bad_ids || row_.delivery_id;
            bad_webhooks := bad_webhooks || row_.webhook_id;
            bad_sizes := bad_sizes || bytes;
            reasons := reasons || why;
        END IF;
        EXIT WHEN canceled OR clock_timestamp() - started > interval '0.1 s';
    END LOOP;
    UPDATE pggit.alert_delivery_queue q
       SET body_bytes = m.bytes
      FROM unnest(ids, sizes) AS m (id, bytes)
     WHERE q.delivery_id = ANY (ids) AND q.delivery_id = m.id;
    UPDATE pggit.alert_delivery_queue q
       SET leases_lost = greatest(q.leases_lost, 3), routed = true
      FROM unnest(bad_ids, reasons) AS b (id, reason)
     WHERE q.delivery_id = ANY (bad_ids) AND q.delivery_id = b.id AND b.reason IS NULL;
    -- The token changes, or the trigger would respond as to an operator's change.
    UPDATE pggit.alert_delivery_queue q
       SET delivery_status = 'failed', body_bytes = b.bytes, worker_id = p_worker_id,
           ended_at = now(), lease_token = CASE WHEN q.lease_token IS NULL THEN -1 END
      FROM unnest(bad_ids, bad_sizes, reasons) AS b (id, bytes, reason)
     WHERE q.delivery_id = ANY (bad_ids) AND q.delivery_id = b.id AND b.reason IS NOT NULL;
    INSERT INTO pggit.alert_delivery_log
           (delivery_id, webhook_id, event_type, event_details, worker_id)
    SELECT b.id, b.webhook_id, 'failed', jsonb_build_object('reason', b.reason), p_worker_id
      FROM unnest(bad_ids, bad_webhooks, reasons) AS b (id, webhook_id, reason)
     WHERE b.reason IS NOT NULL;
    -- A claim that met the locked rows may have found nothing else and parked their lane.
    PERFORM FROM pggit.webhook_health_metrics h
      WHERE h.webhook_id = ANY (lanes) ORDER BY h.webhook_id FOR NO KEY UPDATE;
    UPDATE pggit.webhook_health_metrics h
       SET runnable_at = now()
     WHERE h.webhook_id = ANY (lanes) AND (h.runnable_at > now() OR h.runnable_at IS NULL);
    RETURN QUERY SELECT * FROM unnest(bad_ids, bad_webhooks, reasons);
END $$;
