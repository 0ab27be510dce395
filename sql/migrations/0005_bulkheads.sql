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
