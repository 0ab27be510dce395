-- A thousand deliveries for fifty webhooks, 2000 to 2049: the load that the dashboards of pggit
-- were tested with.
INSERT INTO pggit.alert_delivery_queue (
    alert_id, webhook_id, message_body, delivery_status,
    retry_count, max_retries, created_at
)
SELECT
    1000 + seq,
    2000 + (seq % 50),
    jsonb_build_object('test', 'load-' || seq),
    'pending', 0, 3,
    CURRENT_TIMESTAMP - INTERVAL '5 seconds' * (seq % 10)
FROM generate_series(1, 1000) seq;
