-- Measure these bodies; end the rows that cannot be sent.
SELECT delivery_id, webhook_id, reason
  FROM pggit.measure_bodies(%(delivery_ids)s::bigint[], %(largest)s, %(worker_id)s, %(again)s)
