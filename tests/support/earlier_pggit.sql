-- The schema of an earlier pggit, with rows and with what users added: grants, a foreign key, a
-- view and columns of their own. The tests of `webhookd migrate` adopt it.
CREATE SCHEMA pggit;

CREATE TABLE pggit.alert_delivery_queue (
    delivery_id bigserial PRIMARY KEY,
    alert_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    message_body jsonb NOT NULL,
    delivery_status text DEFAULT 'pending'
        CHECK (delivery_status IN ('pending', 'retrying', 'delivered', 'failed')),
    retry_count int DEFAULT 0,
    max_retries int DEFAULT 3,
    next_retry_at timestamp,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    attempted_at timestamp,
    delivered_at timestamp,
    tenant text NOT NULL DEFAULT 'acme'
);
CREATE INDEX idx_queue_status ON pggit.alert_delivery_queue (delivery_status, next_retry_at);

CREATE TABLE pggit.alert_delivery_log (
    log_id bigserial PRIMARY KEY,
    delivery_id bigint REFERENCES pggit.alert_delivery_queue ON DELETE CASCADE,
    webhook_id bigint,
    event_type varchar(20) NOT NULL
        CHECK (event_type IN ('queued', 'attempt', 'delivered', 'failed')),
    event_details jsonb,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE pggit.webhook_health_metrics (
    metric_id bigserial PRIMARY KEY,
    webhook_id bigint NOT NULL UNIQUE,
    total_deliveries bigint DEFAULT 0,
    successful_deliveries bigint DEFAULT 0,
    failed_deliveries bigint DEFAULT 0,
    avg_response_time_ms numeric(10, 2),
    max_response_time_ms numeric(10, 2),
    min_response_time_ms numeric(10, 2),
    health_status text DEFAULT 'healthy'
        CHECK (health_status IN ('healthy', 'degraded', 'unavailable')),
    last_check_at timestamp,
    last_success_at timestamp,
    last_failure_at timestamp,
    consecutive_failures int DEFAULT 0 CHECK (consecutive_failures >= 0),
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP,
    CHECK (total_deliveries >= successful_deliveries + failed_deliveries)
);

CREATE TABLE pggit.webhooks (
    id serial PRIMARY KEY,
    name varchar(80) NOT NULL,
    url text NOT NULL,
    events text[] NOT NULL,
    active boolean DEFAULT true
);

CREATE TABLE public.subscriptions (
    webhook_id bigint REFERENCES pggit.webhook_health_metrics (webhook_id), plan text);

CREATE FUNCTION pggit.get_ready_deliveries(p_limit int DEFAULT 10)
RETURNS SETOF pggit.alert_delivery_queue
    LANGUAGE sql AS 'SELECT * FROM pggit.alert_delivery_queue LIMIT p_limit';
CREATE FUNCTION pggit.update_webhook_health(p_webhook_id bigint, p_status int, p_ms int,
                                            p_error text DEFAULT NULL)
    RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION pggit.get_webhook_decrypted(p_id int) RETURNS text
LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION pggit.count_pending_by_status() RETURNS TABLE (status text, count bigint)
    LANGUAGE sql AS 'SELECT delivery_status, count(*) FROM pggit.alert_delivery_queue GROUP BY 1';
-- pggit has more than webhooks.
CREATE FUNCTION pggit.commits() RETURNS int LANGUAGE sql AS 'SELECT 1';

CREATE VIEW pggit.v_webhook_performance AS
    SELECT webhook_id, health_status, total_deliveries, avg_response_time_ms,
           (now() - last_success_at)::text AS success_freshness
      FROM pggit.webhook_health_metrics;
CREATE VIEW pggit.v_degraded_webhooks AS
    SELECT webhook_id, success_freshness FROM pggit.v_webhook_performance
     WHERE health_status <> 'healthy';
CREATE VIEW pggit.v_webhook_health_dashboard AS
    SELECT health_status, count(*) AS webhook_count FROM pggit.webhook_health_metrics GROUP BY 1;

INSERT INTO pggit.webhooks (name, url, events, active) VALUES
    ('orders', 'https://example.com/orders', '{paid}', true),
    ('stock', 'https://example.com/stock', '{moved}', false);
INSERT INTO pggit.webhook_health_metrics (webhook_id, total_deliveries, successful_deliveries,
                                          failed_deliveries,
        avg_response_time_ms, health_status, last_success_at, consecutive_failures) VALUES
    (1, 10, 9, 1, 120.50, 'healthy', '2026-07-01 12:00', 0),
    (2, 4, 0, 4, NULL, 'unavailable', NULL, 4),
    (7, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.subscriptions VALUES (1, 'gold');
INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status,
                                        retry_count, max_retries,
        next_retry_at, created_at, delivered_at, tenant) VALUES
    (100, 1, '{"n": 1}', 'pending', 0, 3, NULL, '2026-07-01 12:00', NULL, 'acme'),
    (101, 1, '{"n": 2}', 'retrying', 2, 3, '2026-01-01 12:00', '2026-01-01 11:00', NULL, 'acme'),
    (102, 2, '{"n": 3}', 'pending', NULL, NULL, NULL, NULL, NULL, 'globex'),
    (103, 1, '{"n": 4}', 'delivered', 0, 3, NULL, '2026-07-01 12:00', '2026-07-01 12:01', 'acme'),
    (104, 9, '{"n": 5}', 'failed', 3, 3, '2026-07-01 12:00', '2026-07-01 12:00', NULL, 'acme');
INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details,
                                      created_at) VALUES
    (1, 1, 'queued', '{}', '2026-07-01 12:00'), (4, 1, 'attempt', NULL, '2026-07-01 12:01'),
    (NULL, 2, 'failed', NULL, NULL);
