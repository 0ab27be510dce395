-- Measure these bodies; end or quarantine the rows that cannot be sent.
SELECT delivery_id, webhook_id, reason
  FROM pggit.measure_bodies(%(delivery_ids)s::bigint[], %(largest)s, %(worker_id)s, %(last)s,
                            %(again)s)
