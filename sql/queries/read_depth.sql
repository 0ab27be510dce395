-- The queue's depth as last counted; nothing if the last count is old, since it would look fresh.
SELECT cause, deliveries, oldest_due_seconds
  FROM pggit.queue_depth
 WHERE counted_at > now() - interval '60 seconds'
