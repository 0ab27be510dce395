SELECT cause, deliveries, oldest_due_seconds FROM pggit.queue_depth
