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

-----------------------------------------------------------------------------------------------
-- Held lanes: the webhook's row, or the options in force, rule out every request.

ALTER TABLE pggit.webhook_health_metrics
    ADD COLUMN blocked_reason text,
    DROP CONSTRAINT webhook_health_metrics_blocked_by_check,
    ADD CONSTRAINT blocked_by_is_known CHECK (blocked_by IN (
        'unregistered', 'paused', 'configuration', 'circuit', 'hold', 'rate', 'in_flight'));
-- `blocked_reason` is NULL unless `blocked_by` is 'configuration'. Not (webhook_id, blocked_by):
-- that changes with each claim of a busy lane, and an index with it would cost a new entry each
-- time.
CREATE INDEX lane_held ON pggit.webhook_health_metrics (webhook_id)
    WHERE blocked_reason IS NOT NULL;

-- Registered, enabled, changed: workers look at the lane again. A held lane stays held until then:
-- the look finds out whether the change was enough, and says so once. What an operator changes also
-- starts the time anew for which a webhook may fail (--disable-after).
CREATE OR REPLACE FUNCTION pggit.unpark_lane() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO pggit.webhook_health_metrics AS lane (webhook_id, runnable_at)
        VALUES (NEW.webhook_id, now())
        ON CONFLICT (webhook_id) DO UPDATE
            SET runnable_at = now(), failing_since = NULL,
                blocked_by = CASE WHEN lane.blocked_by = 'configuration' THEN lane.blocked_by END;
    PERFORM pggit.wake();
    RETURN NULL;
END $$;

-- As before, but a reset does not end what the configuration holds: the next look decides.
CREATE OR REPLACE FUNCTION pggit.reset_circuit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.circuit_state := 'closed';
    NEW.circuit_epoch := OLD.circuit_epoch + 1;
    NEW.circuit_until := NULL;
    NEW.hold_until := NULL;
    NEW.failing_since := NULL;
    NEW.runnable_at := now();
    NEW.blocked_by := CASE WHEN OLD.blocked_by = 'configuration' THEN OLD.blocked_by END;
    PERFORM pggit.wake();
    RETURN NEW;
END $$;

-- The options of a running worker that decide about delivery. Commands judge by them.
ALTER TABLE pggit.workers ADD COLUMN options jsonb NOT NULL DEFAULT '{}';

-----------------------------------------------------------------------------------------------
-- Slow lanes must leave slots to others. How long an exchange takes (a mean that follows the last
-- ones, each counted as a second at most), and whether that is slow. Both are NULL until there was
-- an exchange. Looks for work meet only the kinds of lanes that a worker has slots for.

ALTER TABLE pggit.webhook_health_metrics
    ADD COLUMN exchange_seconds double precision,
    ADD COLUMN slow boolean;
DROP INDEX pggit.lane_runnable;
CREATE INDEX lane_runnable ON pggit.webhook_health_metrics (runnable_at)
    WHERE runnable_at IS NOT NULL AND slow IS FALSE;
CREATE INDEX lane_runnable_new ON pggit.webhook_health_metrics (runnable_at)
    WHERE runnable_at IS NOT NULL AND slow IS NULL;
CREATE INDEX lane_runnable_slow ON pggit.webhook_health_metrics (runnable_at)
    WHERE runnable_at IS NOT NULL AND slow IS TRUE;

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
ALTER TABLE pggit.webhooks ADD CONSTRAINT uid_is_unique_in_its_tenant UNIQUE (tenant, uid);

-- What cannot be meant is refused where it is written. NOT VALID: rows that exist stay as they are,
-- and are checked when they are next changed. The name of a constraint is what people read.
ALTER TABLE pggit.webhooks
    ADD CONSTRAINT webhook_id_is_from_1_to_2_pow_53
        CHECK (webhook_id BETWEEN 1 AND 9007199254740992) NOT VALID,
    ADD CONSTRAINT url_is_at_most_8_kib CHECK (octet_length(url) <= 8192) NOT VALID,
    ADD CONSTRAINT secret_is_whsec_and_base64_of_24_to_64_bytes CHECK (
        CASE WHEN secret ~ '^whsec_([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}[A-Za-z0-9+/=]=)?$'
             THEN octet_length(decode(substr(secret, 7), 'base64')) BETWEEN 24 AND 64
             ELSE secret IS NULL END) NOT VALID,
    ADD CONSTRAINT old_secret_is_whsec_and_base64_of_24_to_64_bytes CHECK (
        CASE WHEN old_secret ~ '^whsec_([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}[A-Za-z0-9+/=]=)?$'
             THEN octet_length(decode(substr(old_secret, 7), 'base64')) BETWEEN 24 AND 64
             ELSE old_secret IS NULL END) NOT VALID,
    ADD CONSTRAINT headers_are_at_most_16_kib CHECK (octet_length(headers::text) <= 16384)
        NOT VALID,
    ADD CONSTRAINT headers_are_at_most_64_names CHECK (jsonb_array_length(
        jsonb_path_query_array(headers, 'strict $.keyvalue()', '{}', true)) <= 64) NOT VALID,
    ADD CONSTRAINT name_is_at_most_200_characters CHECK (char_length(name) <= 200) NOT VALID,
    ADD CONSTRAINT uid_is_at_most_255_characters CHECK (char_length(uid) <= 255) NOT VALID,
    ADD CONSTRAINT tenant_is_1_to_100_characters CHECK (char_length(tenant) BETWEEN 1 AND 100)
        NOT VALID,
    ADD CONSTRAINT labels_are_an_object CHECK (jsonb_typeof(labels) = 'object') NOT VALID,
    ADD CONSTRAINT labels_are_at_most_4_kib CHECK (octet_length(labels::text) <= 4096) NOT VALID,
    ADD CONSTRAINT labels_are_at_most_64_names CHECK (jsonb_array_length(
        jsonb_path_query_array(labels, 'strict $.keyvalue()', '{}', true)) <= 64) NOT VALID;

-----------------------------------------------------------------------------------------------
-- What producers may write, and how large. body_bytes: bytes of message_body as text; NULL: not
-- measured yet.

ALTER TABLE pggit.installation ADD COLUMN max_body_bytes bigint NOT NULL DEFAULT 1048576;
ALTER TABLE pggit.alert_delivery_queue ADD COLUMN body_bytes bigint;

-- Every delivery gets its id from this sequence, in the trigger: an id that a producer chose could
-- be another producer's next one, or one that receivers have seen. The default is for sessions
-- whose triggers are off; in others it would take a second number. The sequence goes on after the
-- highest id in use; ids beyond 2^62, which nothing but a mistake reaches, are not followed.
DO $$
DECLARE
    highest bigint;
BEGIN
    SELECT max(known) INTO highest
      FROM (SELECT max(delivery_id) FROM pggit.alert_delivery_queue
             WHERE delivery_id < 1::bigint << 62
             UNION ALL
            SELECT pg_sequence_last_value(
                pg_get_serial_sequence('pggit.alert_delivery_queue', 'delivery_id')::regclass)
           ) AS ids (known)
     WHERE known < 1::bigint << 62;
    ALTER TABLE pggit.alert_delivery_queue
        ALTER COLUMN delivery_id DROP IDENTITY IF EXISTS, ALTER COLUMN delivery_id DROP DEFAULT;
    CREATE SEQUENCE pggit.delivery_ids OWNED BY pggit.alert_delivery_queue.delivery_id;
    ALTER TABLE pggit.alert_delivery_queue ALTER COLUMN delivery_id SET DEFAULT
        CASE WHEN current_setting('session_replication_role') = 'replica'
             THEN nextval('pggit.delivery_ids') END;
    IF highest > 0 THEN
        PERFORM setval('pggit.delivery_ids', highest);
    END IF;
END $$;

-- The bytes of a body as text; an error if they are more than --max-body. What a value takes in
-- memory says little: it may be compressed, a character may become `\u0001`, and 1e131071 is 8
-- bytes. So the text is only made once it cannot be many times longer than the limit.
CREATE FUNCTION pggit.measure_body(body jsonb) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most   bigint := coalesce((SELECT max_body_bytes FROM pggit.installation), 1048576);
    -- jsonb_path_query_first returns a copy that is not compressed.
    stored bigint := pg_column_size(CASE WHEN pg_column_compression(body) IS NULL THEN body
                                         ELSE jsonb_path_query_first(body, '$') END);
    length bigint;
    bytes  bigint := 0;
BEGIN
    -- The text of `[1, 1, ...]` is a quarter of what is stored, and no text is less.
    IF stored <= 8 * most THEN
        -- jsonb_path_query would take a time that grows with the square of the numbers.
        FOR length IN
            SELECT octet_length(n::text)
              FROM jsonb_array_elements(jsonb_path_query_array(
                       body, 'strict $.** ? (@.type() == "number")')) AS n
             WHERE abs(n::numeric) >= 1e40 OR scale(n::numeric) > 40
        LOOP
            bytes := bytes + length;
            EXIT WHEN bytes > most;
        END LOOP;
        IF bytes <= most THEN
            bytes := octet_length(body::text);
        END IF;
        IF bytes <= most THEN
            RETURN bytes;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = 'body_is_at_most_max_body',
        SCHEMA = 'pggit', TABLE = 'alert_delivery_queue', COLUMN = 'message_body',
        MESSAGE = format('message_body is more than %s bytes as text, the --max-body of webhookd: '
                         'send a reference to the data, or give workers a larger --max-body',
                         most);
END $$;

-- A producer says what to send (webhook_id, message_body, alert_id), when and how often at most
-- (next_retry_at, max_retries), and when it was made (created_at). All else is the engine's, and is
-- ignored in an INSERT: a forged count or lease would hold up others. Who may UPDATE these columns
-- can have them kept by `SET webhookd.import = 'on'`, to import a history.
--
-- A definer's function, since a producer may not use the sequence. STABLE saves each row a snapshot.
CREATE OR REPLACE FUNCTION pggit.fill_in_defaults() RETURNS trigger
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.delivery_status = 'pending' AND NEW.retry_count = 0 AND NEW.attempts = 0
       AND NEW.leases_lost = 0 AND NOT NEW.routed
       AND num_nonnulls(NEW.delivery_id, NEW.worker_id, NEW.attempted_at, NEW.delivered_at,
                        NEW.first_attempted_at, NEW.ended_at, NEW.lease_token, NEW.lease_until,
                        NEW.leased_by) = 0 THEN
        NEW.delivery_id := nextval('pggit.delivery_ids');
    ELSIF current_setting('webhookd.import', true) = 'on' AND has_column_privilege(
            coalesce(nullif(current_setting('role'), 'none'), session_user::text)::name,
            'pggit.alert_delivery_queue', 'delivery_status', 'UPDATE') THEN
        IF NEW.delivery_id IS NULL THEN
            NEW.delivery_id := nextval('pggit.delivery_ids');
        ELSIF NEW.delivery_id < 1::bigint << 62 AND NEW.delivery_id
              > coalesce(pg_sequence_last_value('pggit.delivery_ids'), 0) THEN
            PERFORM setval('pggit.delivery_ids', NEW.delivery_id);
        END IF;
        IF NEW.delivery_status IS NULL
           OR (NEW.delivery_status = 'sending' AND NEW.lease_until IS NULL) THEN
            NEW.delivery_status := 'pending';  -- without a lease it would be nobody's for ever
        END IF;
        NEW.retry_count := coalesce(NEW.retry_count, 0);
        NEW.attempts := coalesce(NEW.attempts, 0);
        NEW.leases_lost := coalesce(NEW.leases_lost, 0);
        NEW.routed := coalesce(NEW.routed, false);
    ELSE
        NEW.delivery_id := nextval('pggit.delivery_ids');
        NEW.delivery_status := 'pending';
        NEW.retry_count := 0;
        NEW.attempts := 0;
        NEW.leases_lost := 0;
        NEW.routed := false;
        NEW.worker_id := NULL;
        NEW.attempted_at := NULL;
        NEW.delivered_at := NULL;
        NEW.first_attempted_at := NULL;
        NEW.ended_at := NULL;
        NEW.lease_token := NULL;
        NEW.lease_until := NULL;
        NEW.leased_by := NULL;
    END IF;
    IF NEW.next_retry_at IS NULL THEN
        NEW.next_retry_at := now();
    END IF;
    IF NEW.created_at IS NULL THEN
        NEW.created_at := now();
    END IF;
    -- So small a body is 50 MB of text at the worst, and with the least possible limit 64 KB.
    IF pg_column_size(NEW.message_body) <= 4096
       AND pg_column_compression(NEW.message_body) IS NULL THEN
        NEW.body_bytes := octet_length(NEW.message_body::text);
        IF NEW.body_bytes <= 65536 THEN
            RETURN NEW;
        END IF;
    END IF;
    NEW.body_bytes := pggit.measure_body(NEW.message_body);
    RETURN NEW;
END $$;

CREATE FUNCTION pggit.measure_new_body() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.body_bytes := pggit.measure_body(NEW.message_body);
    RETURN NEW;
END $$;
CREATE TRIGGER measure_new_body BEFORE UPDATE OF message_body ON pggit.alert_delivery_queue
    FOR EACH ROW EXECUTE FUNCTION pggit.measure_new_body();

-----------------------------------------------------------------------------------------------
-- The lock under which the duty to be notified changes hands: this row, FOR UPDATE. An advisory
-- lock could be taken, and kept, by every role that may connect.

CREATE TABLE pggit.watch (only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row));
INSERT INTO pggit.watch DEFAULT VALUES;

-----------------------------------------------------------------------------------------------
-- Poison: bodies that are huge as text, or that cannot be read at all.

-- One worker of the fleet at a time tries rows in quarantine: not before last_run_at.
INSERT INTO pggit.chores (chore) VALUES ('measure_bodies'), ('quarantine');

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
-- Retries, for senders other than webhookd. Here, because it reads columns of other sections.

-- Whoever asks sends by itself, so it gets a number: the row's, the webhook's, or that of the
-- newest worker's options. The last number is the default of --max-retries. A definer's function:
-- who could call it so far need not be able to read the registry and the workers.
CREATE OR REPLACE FUNCTION pggit.get_ready_deliveries(p_limit integer DEFAULT 10)
RETURNS TABLE (delivery_id bigint, alert_id bigint, webhook_id bigint, message_body jsonb,
               retry_count integer, max_retries integer)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

-----------------------------------------------------------------------------------------------
-- Rights. Last, because it names what the sections above make.
--
-- What PUBLIC may execute: wake() alone, which the triggers call and which does what every role may
-- do, a NOTIFY (docs/rights.md). Roles that can use the rest of it so far, since
-- they may read or write what it works on, go on.

DO $$
DECLARE
    rule   record;
    grantee text;
BEGIN
    FOR rule IN
        SELECT f.signature, f.relation::regclass AS relation, f.privilege
          FROM (VALUES
            ('pggit.get_ready_deliveries(integer)', 'pggit.alert_delivery_queue', 'UPDATE'),
            ('pggit.count_pending_by_status()', 'pggit.alert_delivery_queue', 'SELECT'),
            ('pggit.get_webhook_decrypted(bigint)', 'pggit.webhooks', 'SELECT'),
            ('pggit.update_webhook_health(bigint, integer, integer, text)',
             'pggit.webhook_health_metrics', 'UPDATE')) AS f (signature, relation, privilege)
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', rule.signature);
        FOR grantee IN
            SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                                 ELSE quote_ident(pg_get_userbyid(a.grantee)) END
              FROM pg_class c
             CROSS JOIN LATERAL (
                SELECT unnest(c.relacl)
                 UNION ALL
                SELECT unnest(t.attacl) FROM pg_attribute t WHERE t.attrelid = c.oid) AS l (acl)
             CROSS JOIN LATERAL aclexplode(ARRAY[l.acl]) AS a
             WHERE c.oid = rule.relation AND a.privilege_type = rule.privilege
               AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', rule.signature, grantee);
        END LOOP;
    END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION pggit.measure_body(jsonb), pggit.fill_in_defaults(),
    pggit.measure_new_body(), pggit.requeue(), pggit.reset_circuit(), pggit.wake_after_insert(),
    pggit.measure_bodies(bigint[], bigint, text, boolean)
    FROM PUBLIC;

-- A role of their own that workers connect as may use what is new as it may use the queue.
DO $$
DECLARE
    worker text;
BEGIN
    FOR worker IN
        SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                             ELSE quote_ident(pg_get_userbyid(a.grantee)) END
          FROM pg_class c
         CROSS JOIN LATERAL aclexplode(c.relacl) AS a
         WHERE c.oid = 'pggit.webhook_health_metrics'::regclass
           AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON pggit.watch TO %s', worker);
        EXECUTE format('GRANT UPDATE (max_body_bytes) ON pggit.installation TO %s', worker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION '
                       'pggit.measure_bodies(bigint[], bigint, text, boolean) TO %s', worker);
    END LOOP;
END $$;
