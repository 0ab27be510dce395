SELECT COUNT(*) as test_deliveries FROM pggit.alert_delivery_queue
WHERE alert_id > 1000;
