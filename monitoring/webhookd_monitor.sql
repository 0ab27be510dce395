-- The role webhookd_monitor: dashboards, `webhookd status` and scripts read webhookd's tables with
-- it, and can change nothing.
--
--   psql "$DATABASE_URL" -f monitoring/webhookd_monitor.sql
--   psql "$DATABASE_URL" -f monitoring/webhookd_monitor.sql -v password='...'
--
-- The first sets no password (for peer or certificates), the second sets one.
--
-- Run it after `webhookd migrate` and again after each upgrade; it revokes all rights first. Run
-- it as the owner of the schema pggit, who needs CREATEROLE but need not be a superuser. It is one
-- transaction.
--
-- The role cannot read the bodies of deliveries (message_body), their URLs (url), secrets (secret,
-- headers), or the answers of receivers (event_details). So `webhookd delivery show` needs another
-- role.

\set ON_ERROR_STOP on
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
BEGIN
    IF to_regclass('pggit.retention') IS NULL THEN
        RAISE EXCEPTION 'this database has no current webhookd schema: run webhookd migrate first';
    END IF;
    IF to_regrole('webhookd_monitor') IS NULL THEN
        CREATE ROLE webhookd_monitor LOGIN;
    END IF;
END $$;

-- Enough for Grafana, scripts and a person, and a limit for a bad dashboard. These settings guard
-- against accidents only, because a session can change them. The role cannot write because it has
-- no right to.
ALTER ROLE webhookd_monitor CONNECTION LIMIT 10;
ALTER ROLE webhookd_monitor SET default_transaction_read_only = on;
ALTER ROLE webhookd_monitor SET statement_timeout = '10s';
-- A transaction that is left open would keep vacuum from removing the queue's dead rows.
ALTER ROLE webhookd_monitor SET idle_in_transaction_session_timeout = '30s';
\if :{?password}
ALTER ROLE webhookd_monitor PASSWORD :'password';
\endif

REVOKE ALL ON ALL TABLES IN SCHEMA pggit FROM webhookd_monitor;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pggit FROM webhookd_monitor;
GRANT USAGE ON SCHEMA pggit TO webhookd_monitor;
GRANT SELECT ON
    pggit.v_webhook_health_dashboard, pggit.v_webhook_performance, pggit.v_degraded_webhooks,
    pggit.v_waiting_deliveries, pggit.webhook_health_metrics, pggit.queue_depth,
    pggit.finished_counts, pggit.worker_minutes, pggit.workers, pggit.chores, pggit.retention,
    pggit.installation, pggit.webhookd_migrations, pggit.wake_flag, pggit.watch
    TO webhookd_monitor;
GRANT SELECT (webhook_id, name, uid, tenant, labels, enabled, disabled_reason, timeout_seconds,
              max_in_flight, rate_limit_per_second, rate_limit_burst, max_retries,
              retry_base_seconds, retry_factor, retry_max_seconds, circuit_failure_threshold,
              circuit_open_seconds, old_secret_until, created_at)
    ON pggit.webhooks TO webhookd_monitor;
GRANT SELECT (delivery_id, alert_id, webhook_id, delivery_status, status, retry_count, max_retries,
              next_retry_at, worker_id, created_at, attempted_at, delivered_at,
              first_attempted_at, attempts, routed, lease_until, leased_by, leases_lost, ended_at,
              body_bytes)
    ON pggit.alert_delivery_queue TO webhookd_monitor;
GRANT SELECT (log_id, delivery_id, webhook_id, event_type, created_at, http_status,
              response_time_ms, worker_id)
    ON pggit.alert_delivery_log TO webhookd_monitor;
GRANT EXECUTE ON FUNCTION pggit.count_pending_by_status() TO webhookd_monitor;

-- GRANT only warns if the user has no right to grant, so check the result.
DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(name, ', ') INTO missing
      FROM unnest(ARRAY['webhook_health_metrics', 'queue_depth', 'finished_counts',
                        'worker_minutes', 'workers', 'v_waiting_deliveries']) AS name
     WHERE NOT has_table_privilege('webhookd_monitor', 'pggit.' || name, 'SELECT');
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'no right to grant SELECT on %: run this as the owner of the schema pggit',
            missing;
    END IF;
    IF NOT has_database_privilege('webhookd_monitor', current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO webhookd_monitor', current_database());
    END IF;
END $$;
COMMIT;
