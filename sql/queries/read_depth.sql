-- The queue's depth as last counted; nothing where nobody has counted it lately, since an old figure would look fresh.
SELECT cause, deliveries, oldest_due_seconds FROM pggit.queue_depth WHERE counted_at > now() - interval '60 seconds'
