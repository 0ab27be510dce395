-- Attempts that stand twice among the newest of the attempt log: the fence lets each claim be
-- recorded once.
WITH newest AS MATERIALIZED (
    SELECT delivery_id, event_details->>'attempt' AS attempt
      FROM pggit.alert_delivery_log
     ORDER BY log_id DESC
     LIMIT 10000
)
SELECT delivery_id, attempt, count(*)::int AS times
  FROM newest
 WHERE attempt IS NOT NULL
 GROUP BY delivery_id, attempt
HAVING count(*) > 1
 ORDER BY delivery_id, attempt
