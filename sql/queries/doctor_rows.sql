-- Impossible rows among the newest deliveries that webhookd attempted (the history may be long).
WITH newest AS MATERIALIZED (
    SELECT delivery_id, delivery_status, delivered_at, retry_count, max_retries, attempts,
           lease_until, leased_by
      FROM pggit.alert_delivery_queue
     ORDER BY delivery_id DESC
     LIMIT 10000
)
SELECT min(delivery_id) AS first_id,
       count(*) FILTER (WHERE delivery_status = 'delivered' AND delivered_at IS NULL) AS undated,
       count(*) FILTER (WHERE lease_until IS NOT NULL OR leased_by IS NOT NULL) AS held,
       count(*) FILTER (WHERE retry_count > max_retries AND attempts > retry_count) AS overspent
  FROM newest
 WHERE delivery_status IN ('delivered', 'failed') AND attempts > 0
