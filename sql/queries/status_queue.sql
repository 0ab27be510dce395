-- The queue by status.
SELECT pending_count, retrying_count, delivered_count, failed_count, total_count
  FROM pggit.count_pending_by_status()
