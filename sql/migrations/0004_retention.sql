-- Finished deliveries and old attempts go once they were kept for the configured time. Every table stays what it is: rows are
-- removed page by page, and nobody waits for it (docs/architecture.md, "What is kept").
-- oldest webhookd: 0.1.0

-- Where the round through a table stands. Workers that remove rows hold its row, so one does it at a time. Not a column of chores:
-- a worker of an earlier release takes every chore there is and leaves undone what it does not know, so the pace must be told from
-- what was done.
CREATE TABLE pggit.retention (
    table_name     text PRIMARY KEY,
    next_page      bigint NOT NULL DEFAULT 0,
    turned_at      timestamptz NOT NULL DEFAULT now(),  -- when pages were last gone through
    lap_started_at timestamptz NOT NULL DEFAULT now(),
    removed        bigint NOT NULL DEFAULT 0
);
INSERT INTO pggit.retention (table_name) VALUES ('alert_delivery_queue'), ('alert_delivery_log');
INSERT INTO pggit.chores (chore) VALUES ('retain');

-- A truncating vacuum locks everybody out while it looks for empty pages at a table's end and drops their buffers; what rows leave
-- behind is filled again anyway. A twentieth of the log may be dead before its indexes are gone through.
ALTER TABLE pggit.alert_delivery_log SET (vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE pggit.alert_delivery_queue SET (vacuum_truncate = false);

-- When somebody ended a delivery by hand: nothing else tells how long it has been finished.
ALTER TABLE pggit.alert_delivery_queue ADD COLUMN ended_at timestamptz;

CREATE OR REPLACE FUNCTION pggit.requeue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.lease_token := NULL;
    NEW.lease_until := NULL;
    NEW.leased_by := NULL;
    IF NEW.delivery_status = 'sending' THEN
        NEW.delivery_status := 'pending';  -- without a lease it would be nobody's for ever
    END IF;
    IF NEW.delivery_status IN ('pending', 'retrying') THEN
        NEW.routed := false;
        NEW.leases_lost := 0;
        NEW.next_retry_at := coalesce(NEW.next_retry_at, now());
        NEW.delivered_at := NULL;
        NEW.ended_at := NULL;
        IF OLD.delivery_status IN ('delivered', 'failed') THEN
            NEW.first_attempted_at := NULL;
        END IF;
        PERFORM pggit.wake();
    ELSIF NEW.delivery_status <> OLD.delivery_status THEN
        NEW.ended_at := now();
    END IF;
    RETURN NEW;
END $$;

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
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON pggit.retention TO %s', worker);
    END LOOP;
END $$;
