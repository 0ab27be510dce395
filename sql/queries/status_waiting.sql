-- What waits, by what it waits for (as measure_depth counts it), and how long ago the oldest row of
-- each cause was due (NULL for -infinity: before PostgreSQL 17 no interval is infinite).
SELECT coalesce({barred:w},
                CASE WHEN NOT q.due THEN 'scheduled' ELSE coalesce(h.blocked_by, 'due') END)
           AS cause,
       sum(q.deliveries)::bigint AS deliveries,
       extract(epoch FROM now() - nullif(min(q.oldest) FILTER (WHERE q.due), '-infinity'))::float8
           AS oldest_due_s
  FROM (SELECT webhook_id, next_retry_at <= now() AS due, count(*) AS deliveries,
               min(next_retry_at) AS oldest
          FROM pggit.v_waiting_deliveries
         GROUP BY webhook_id, next_retry_at <= now()) q
  LEFT JOIN pggit.webhooks w USING (webhook_id)
  LEFT JOIN pggit.webhook_health_metrics h USING (webhook_id)
 GROUP BY 1
 ORDER BY 1
