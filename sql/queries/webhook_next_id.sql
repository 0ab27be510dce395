-- An id that no webhook has and that no delivery or lane names: those would become the new
-- webhook's.
SELECT 1 + greatest(0, (SELECT max(webhook_id) FROM pggit.webhooks),
                    (SELECT max(webhook_id) FROM pggit.webhook_health_metrics),
                    (SELECT max(webhook_id) FROM pggit.alert_delivery_queue)) AS webhook_id
