-- What dashboards, `webhookd status` and service discovery read: counts that do not grow with the history.
-- oldest webhookd: 0.1.0

-- Where this worker serves /metrics, as host:port.
ALTER TABLE pggit.workers ADD COLUMN metrics_address text;

-- What each worker did, minute by minute; kept for 25 hours. durations: attempts by the buckets of
-- webhook_delivery_duration_seconds, the last one without a bound, not cumulative; slowest: of the longest attempt.
CREATE TABLE pggit.worker_minutes (
    minute          timestamptz NOT NULL,
    worker_id       text NOT NULL,
    delivered       bigint NOT NULL,
    failed          bigint NOT NULL,
    timeouts        bigint NOT NULL,
    attempts        bigint GENERATED ALWAYS AS (delivered + failed + timeouts) STORED,
    circuit_opens   bigint NOT NULL,
    rate_limit_hits bigint NOT NULL,
    durations       bigint[] NOT NULL,
    slowest_seconds double precision NOT NULL,
    PRIMARY KEY (minute, worker_id)
);

-- What waits: due, scheduled or held back, but not being sent. One branch for each index that holds such rows, or the planner would
-- read the whole history for them.
CREATE VIEW pggit.v_waiting_deliveries AS
SELECT delivery_id, webhook_id, delivery_status, next_retry_at, attempts, leases_lost
  FROM pggit.alert_delivery_queue
 WHERE NOT routed AND delivery_status IN ('pending', 'retrying')
 UNION ALL
SELECT delivery_id, webhook_id, delivery_status, next_retry_at, attempts, leases_lost
  FROM pggit.alert_delivery_queue
 WHERE routed AND delivery_status IN ('pending', 'retrying') AND leases_lost < 3
 UNION ALL
SELECT delivery_id, webhook_id, delivery_status, next_retry_at, attempts, leases_lost
  FROM pggit.alert_delivery_queue
 WHERE routed AND delivery_status IN ('pending', 'retrying') AND leases_lost >= 3;

------------------------------------------------------------------------------------------------------------------------
-- The look at the flag as one expression: half the cost of a query for every insert.

CREATE OR REPLACE FUNCTION pggit.wake() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    watch bigint := pg_catalog.pg_sequence_last_value('pggit.wake_flag');
BEGIN
    -- NOTIFY serializes commits and forbids PREPARE TRANSACTION, so only where somebody sleeps, and never when told not to.
    IF watch > 1 AND pg_catalog.current_setting('webhookd.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_catalog.pg_notify('webhookd_wake', watch::text);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION pggit.wake_after_insert() RETURNS trigger LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    watch bigint := pg_catalog.pg_sequence_last_value('pggit.wake_flag');
BEGIN
    IF watch > 1 AND pg_catalog.current_setting('webhookd.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_catalog.pg_notify('webhookd_wake', watch::text);
    END IF;
    RETURN NULL;
END $$;

------------------------------------------------------------------------------------------------------------------------
-- How many deliveries are finished: the sum of these rows. Each record adds one row; a worker folds them into one every few seconds.
-- A single counter would make records wait for one another.

CREATE TABLE pggit.finished_counts (
    count_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivered bigint NOT NULL,
    failed    bigint NOT NULL
);
ALTER TABLE pggit.finished_counts SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
INSERT INTO pggit.chores (chore) VALUES ('fold');

-- A delivery that was inserted as finished (an import), or that an operator ended or made wait again. Records count for themselves:
-- what they finish has one attempt more, or one lost lease. It counts for whoever writes the queue, who needs no right for it.
CREATE FUNCTION pggit.count_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text := CASE WHEN TG_OP = 'UPDATE' THEN OLD.delivery_status ELSE '' END;
BEGIN
    INSERT INTO pggit.finished_counts (delivered, failed)
    VALUES ((NEW.delivery_status = 'delivered')::int - (before = 'delivered')::int,
            (NEW.delivery_status = 'failed')::int - (before = 'failed')::int);
    RETURN NULL;
END $$;
CREATE TRIGGER count_inserted AFTER INSERT ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (NEW.delivery_status IN ('delivered', 'failed'))
    EXECUTE FUNCTION pggit.count_changed();
CREATE TRIGGER count_updated AFTER UPDATE OF delivery_status ON pggit.alert_delivery_queue FOR EACH ROW
    WHEN (NEW.delivery_status <> OLD.delivery_status
          AND (NEW.delivery_status IN ('delivered', 'failed') OR OLD.delivery_status IN ('delivered', 'failed'))
          AND NEW.attempts <= OLD.attempts AND NEW.leases_lost <= OLD.leases_lost)
    EXECUTE FUNCTION pggit.count_changed();

CREATE FUNCTION pggit.count_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO pggit.finished_counts (delivered, failed)
    SELECT -count(*) FILTER (WHERE d.delivery_status = 'delivered'), -count(*) FILTER (WHERE d.delivery_status = 'failed')
      FROM deleted d
    HAVING count(*) FILTER (WHERE d.delivery_status IN ('delivered', 'failed')) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER count_deleted AFTER DELETE ON pggit.alert_delivery_queue REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION pggit.count_deleted();

CREATE FUNCTION pggit.count_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    TRUNCATE pggit.finished_counts;
    RETURN NULL;
END $$;
CREATE TRIGGER count_truncated AFTER TRUNCATE ON pggit.alert_delivery_queue
    FOR EACH STATEMENT EXECUTE FUNCTION pggit.count_truncated();

-- Or anybody could put them on a table of his own and have them write here with the owner's rights. A trigger that is there fires all
-- the same.
REVOKE EXECUTE ON FUNCTION pggit.count_changed(), pggit.count_deleted(), pggit.count_truncated(), pggit.unpark_lane() FROM PUBLIC;

-- The condition stands in the function and not in the trigger's WHEN, which PostgreSQL prepares anew for each statement.
CREATE OR REPLACE FUNCTION pggit.fill_in_defaults() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.delivery_status = 'pending' AND NEW.next_retry_at IS NOT NULL AND NEW.retry_count IS NOT NULL
        AND NEW.max_retries IS NOT NULL AND NEW.created_at IS NOT NULL AND NOT NEW.routed) THEN
        RETURN NEW;
    END IF;
    NEW.delivery_status := CASE WHEN NEW.delivery_status IS NULL OR NEW.delivery_status = 'sending'
                                THEN 'pending' ELSE NEW.delivery_status END;
    NEW.next_retry_at := coalesce(NEW.next_retry_at, now());
    NEW.retry_count := coalesce(NEW.retry_count, 0);
    NEW.max_retries := coalesce(NEW.max_retries, 3);
    NEW.created_at := coalesce(NEW.created_at, now());
    NEW.routed := false;
    RETURN NEW;
END $$;
DROP TRIGGER fill_in_defaults ON pggit.alert_delivery_queue;
CREATE TRIGGER fill_in_defaults BEFORE INSERT ON pggit.alert_delivery_queue
    FOR EACH ROW EXECUTE FUNCTION pggit.fill_in_defaults();

-- A delivery that is being sent counts as what it was before: pending on its first attempt, retrying afterwards. Whoever may call it
-- needs no right on what it reads: roles that could count until now go on.
CREATE OR REPLACE FUNCTION pggit.count_pending_by_status()
RETURNS TABLE (pending_count bigint, retrying_count bigint, delivered_count bigint, failed_count bigint,
               total_count bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH unfinished AS (
        SELECT delivery_status = 'pending' AS pending FROM pggit.v_waiting_deliveries
         UNION ALL
        SELECT attempts = 0 FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'
    ), waiting AS (
        SELECT count(*) FILTER (WHERE pending) AS pending, count(*) FILTER (WHERE NOT pending) AS retrying FROM unfinished
    ), finished AS (
        SELECT coalesce(sum(delivered), 0)::bigint AS delivered, coalesce(sum(failed), 0)::bigint AS failed
          FROM pggit.finished_counts
    )
    SELECT pending, retrying, delivered, failed, pending + retrying + delivered + failed FROM waiting, finished
$$;

-- A role of their own that workers connect as may use what is new as it may use the queue.
DO $$
DECLARE
    worker text;
BEGIN
    FOR worker IN
        SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
          FROM pg_class c
         CROSS JOIN LATERAL aclexplode(c.relacl) AS a
         WHERE c.oid = 'pggit.webhook_health_metrics'::regclass AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON pggit.finished_counts, pggit.worker_minutes TO %s', worker);
        EXECUTE format('GRANT SELECT ON pggit.v_waiting_deliveries TO %s', worker);
    END LOOP;
END $$;
