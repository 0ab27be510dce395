-- Queue backpressure (pending vs delivered)
SELECT
    COUNT(CASE WHEN delivery_status = 'pending' THEN 1 END) as pending,
    COUNT(CASE WHEN delivery_status = 'delivered' THEN 1 END) as delivered,
    COUNT(CASE WHEN delivery_status = 'failed' THEN 1 END) as failed
FROM pggit.alert_delivery_queue
WHERE created_at > NOW() - INTERVAL '1 hour';
