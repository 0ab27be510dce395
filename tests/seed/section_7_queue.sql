-- 1. Overall queue metrics
SELECT * FROM pggit.count_pending_by_status();
