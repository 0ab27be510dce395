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
-- Deliveries that were attempted and wait to be retried, by age. Only a retry pays for an entry.
CREATE INDEX queue_retrying ON pggit.alert_delivery_queue (created_at)
    WHERE delivery_status = 'retrying';
INSERT INTO pggit.chores (chore) VALUES ('disable'), ('give_up');

CREATE OR REPLACE FUNCTION pggit.fill_in_defaults() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.delivery_status = 'pending' AND NEW.next_retry_at IS NOT NULL
        AND NEW.retry_count IS NOT NULL AND NEW.created_at IS NOT NULL AND NOT NEW.routed) THEN
        RETURN NEW;
    END IF;
    NEW.delivery_status := CASE WHEN NEW.delivery_status IS NULL OR NEW.delivery_status = 'sending'
                                THEN 'pending' ELSE NEW.delivery_status END;
    NEW.next_retry_at := coalesce(NEW.next_retry_at, now());
    NEW.retry_count := coalesce(NEW.retry_count, 0);
    NEW.created_at := coalesce(NEW.created_at, now());
    NEW.routed := false;
    RETURN NEW;
END $$;

-- What an operator changes starts the time anew for which a webhook may fail (--disable-after).
CREATE OR REPLACE FUNCTION pggit.reset_circuit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.circuit_state := 'closed';
    NEW.circuit_epoch := OLD.circuit_epoch + 1;
    NEW.circuit_until := NULL;
    NEW.hold_until := NULL;
    NEW.failing_since := NULL;
    NEW.runnable_at := now();
    NEW.blocked_by := NULL;
    PERFORM pggit.wake();
    RETURN NEW;
END $$;
CREATE OR REPLACE FUNCTION pggit.unpark_lane() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO pggit.webhook_health_metrics AS lane (webhook_id, runnable_at)
        VALUES (NEW.webhook_id, now())
        ON CONFLICT (webhook_id)
        DO UPDATE SET runnable_at = now(), blocked_by = NULL, failing_since = NULL;
    PERFORM pggit.wake();
    RETURN NULL;
END $$;

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
    ADD COLUMN old_secret_until timestamptz,
    ADD CONSTRAINT old_secret_has_an_end
        CHECK (num_nonnulls(old_secret, old_secret_until) IN (0, 2));
CREATE INDEX webhooks_old_secret ON pggit.webhooks (old_secret_until)
    WHERE old_secret_until IS NOT NULL;
INSERT INTO pggit.chores (chore) VALUES ('old_secrets');

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

-- A body that changes has to be measured again.
CREATE FUNCTION pggit.forget_body_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.body_bytes := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER forget_body_bytes BEFORE UPDATE OF message_body ON pggit.alert_delivery_queue
    FOR EACH ROW WHEN (NEW.body_bytes IS NOT DISTINCT FROM OLD.body_bytes)
    EXECUTE FUNCTION pggit.forget_body_bytes();

-- Measure the bodies of those rows that wait, one at a time, for a tenth of a second: then the rest
-- is for another call. A claim takes only rows whose body_bytes it knows, so no claim reads a body
-- that is too large. One worker measures at a time: a body of 1 GB keeps a processor of the server
-- busy for ten seconds, and nothing interrupts that.
--
-- A row ends as failed where its text is larger than p_largest, or where it cannot be read (within
-- the statement's time). Returns the rows that ended, with the reason.
--
-- Without p_again only rows are read that were not measured yet, or are too large.
CREATE FUNCTION pggit.measure_bodies(
    p_delivery_ids bigint[], p_largest bigint, p_worker_id text, p_again boolean)
RETURNS TABLE (delivery_id bigint, webhook_id bigint, reason text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    started   timestamptz := clock_timestamp();
    candidate record;
    bytes     bigint;
    why       text;
    ids       bigint[] := '{}';
    webhooks  bigint[] := '{}';
    sizes     bigint[] := '{}';
    reasons   text[] := '{}';
BEGIN
    PERFORM FROM pggit.chores WHERE chore = 'measure_bodies' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR candidate IN
        SELECT q.delivery_id, q.webhook_id
          FROM pggit.alert_delivery_queue q
         WHERE q.delivery_id = ANY (p_delivery_ids)
           AND q.delivery_status IN ('pending', 'retrying')
           AND (p_again OR q.body_bytes IS NULL OR q.body_bytes > p_largest)
           FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        bytes := NULL;
        why := NULL;
        -- The outer block is for a cancellation that came while the body was read. It is noticed
        -- late, perhaps only in the inner block's handler.
        BEGIN
            BEGIN
                SELECT octet_length(q.message_body::text) INTO bytes
                  FROM pggit.alert_delivery_queue q
                 WHERE q.delivery_id = candidate.delivery_id;
                IF bytes > p_largest THEN
                    why := format('the body is %s bytes as text, more than %s', bytes, p_largest);
                END IF;
            EXCEPTION WHEN OTHERS THEN
                -- 22: a character or a value; 54: more than the server can hold; 58: the disk does
                -- not give it; XX: corrupted; 53200: no memory for it.
                IF SQLSTATE !~ '^(22|54|58|XX|53200)' THEN
                    RAISE;
                END IF;
                why := 'the body cannot be read: ' || SQLERRM;
            END;
        EXCEPTION WHEN query_canceled THEN
            why := coalesce(why, 'the body cannot be read: ' || SQLERRM);
        END;
        ids := ids || candidate.delivery_id;
        webhooks := webhooks || candidate.webhook_id;
        sizes := sizes || bytes;
        reasons := reasons || why;
        EXIT WHEN clock_timestamp() - started > interval '0.1 s';
    END LOOP;
    UPDATE pggit.alert_delivery_queue q
       SET body_bytes = m.bytes
      FROM unnest(ids, sizes, reasons) AS m (id, bytes, reason)
     WHERE q.delivery_id = ANY (ids) AND q.delivery_id = m.id AND m.reason IS NULL;
    -- The token changes, or the trigger would respond as to an operator's change.
    UPDATE pggit.alert_delivery_queue q
       SET delivery_status = 'failed', body_bytes = m.bytes, worker_id = p_worker_id,
           ended_at = now(), lease_token = CASE WHEN q.lease_token IS NULL THEN -1 END
      FROM unnest(ids, sizes, reasons) AS m (id, bytes, reason)
     WHERE q.delivery_id = ANY (ids) AND q.delivery_id = m.id AND m.reason IS NOT NULL;
    INSERT INTO pggit.alert_delivery_log
           (delivery_id, webhook_id, event_type, event_details, worker_id)
    SELECT m.id, m.webhook_id, 'failed', jsonb_build_object('reason', m.reason), p_worker_id
      FROM unnest(ids, webhooks, reasons) AS m (id, webhook_id, reason)
     WHERE m.reason IS NOT NULL;
    -- Claims put lanes off while their rows are measured, or parked them: the rows were locked.
    PERFORM FROM pggit.webhook_health_metrics h
      WHERE h.webhook_id = ANY (webhooks) ORDER BY h.webhook_id FOR NO KEY UPDATE;
    UPDATE pggit.webhook_health_metrics h
       SET runnable_at = now()
     WHERE h.webhook_id = ANY (webhooks) AND (h.runnable_at > now() OR h.runnable_at IS NULL);
    RETURN QUERY SELECT m.* FROM unnest(ids, webhooks, reasons) AS m (id, webhook_id, reason)
                  WHERE m.reason IS NOT NULL;
END $$;

-----------------------------------------------------------------------------------------------
-- Retries, for senders other than webhookd. Last, because it reads columns of other sections.

-- Whoever asks sends by itself, so it gets a number: the row's, the webhook's, or that of the
-- newest worker's options. The last number is the default of --max-retries.
CREATE OR REPLACE FUNCTION pggit.get_ready_deliveries(p_limit integer DEFAULT 10)
RETURNS TABLE (delivery_id bigint, alert_id bigint, webhook_id bigint, message_body jsonb,
               retry_count integer, max_retries integer)
LANGUAGE sql VOLATILE AS $$
    SELECT q.delivery_id, q.alert_id, q.webhook_id, q.message_body, q.retry_count,
           coalesce(q.max_retries,
                    (SELECT w.max_retries FROM pggit.webhooks w
                      WHERE w.webhook_id = q.webhook_id),
                    (SELECT (k.options ->> 'max_retries')::integer FROM pggit.workers k
                      WHERE k.options ? 'max_retries' ORDER BY k.started_at DESC LIMIT 1),
                    10)
      FROM pggit.alert_delivery_queue q
     WHERE q.delivery_status IN ('pending', 'retrying') AND q.next_retry_at <= now()
     ORDER BY q.created_at, q.delivery_id
     LIMIT p_limit
       FOR UPDATE OF q SKIP LOCKED
$$;
