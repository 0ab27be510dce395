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
-- `blocked_reason` is NULL unless `blocked_by` is 'configuration'. Not (webhook_id, blocked_by):
-- that changes with each claim of a busy lane, and an index with it would cost a new entry each
-- time.
CREATE INDEX lane_held ON pggit.webhook_health_metrics (webhook_id)
    WHERE blocked_reason IS NOT NULL;

-- Registered, enabled, changed: workers look at the lane again. A held lane stays held until then:
-- the look finds out whether the change was enough, and says so once.
CREATE OR REPLACE FUNCTION pggit.unpark_lane() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO pggit.webhook_health_metrics AS lane (webhook_id, runnable_at)
        VALUES (NEW.webhook_id, now())
        ON CONFLICT (webhook_id) DO UPDATE
            SET runnable_at = now(),
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
    NEW.runnable_at := now();
    NEW.blocked_by := CASE WHEN OLD.blocked_by = 'configuration' THEN OLD.blocked_by END;
    PERFORM pggit.wake();
    RETURN NEW;
END $$;

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
