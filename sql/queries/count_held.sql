-- How many lanes the configuration holds.
SELECT count(*) FROM pggit.webhook_health_metrics WHERE blocked_reason IS NOT NULL
