-- The first id after the sequence's last that nothing names. What a delivery or a lane names would
-- become the new webhook's. But whoever may insert deliveries can name as many ids as they like: so
-- for deliveries at most %(skipped)s ids are skipped.
WITH RECURSIVE candidate (webhook_id, steps) AS (
    SELECT 1 + coalesce(
        pg_sequence_last_value(pg_get_serial_sequence('pggit.webhooks', 'webhook_id')::regclass),
        0), 0
     UNION ALL
    SELECT c.webhook_id + 1, c.steps + 1
      FROM candidate c
     WHERE EXISTS (SELECT FROM pggit.webhooks w WHERE w.webhook_id = c.webhook_id)
        OR EXISTS (SELECT FROM pggit.webhook_health_metrics h WHERE h.webhook_id = c.webhook_id)
        OR (c.steps < %(skipped)s
            AND (EXISTS (SELECT FROM pggit.alert_delivery_queue q
                          WHERE q.webhook_id = c.webhook_id AND {new:q})
                 OR EXISTS (SELECT FROM pggit.alert_delivery_queue q
                             WHERE q.webhook_id = c.webhook_id AND {routed:q})))
)
SELECT max(webhook_id) AS webhook_id FROM candidate
