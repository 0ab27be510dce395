-- After an id was given by hand: a later plain INSERT must not get the same from the sequence. An
-- id above %(highest)s is not followed, or the sequence would come to its end.
SELECT setval(s.name::regclass, %(webhook_id)s)
  FROM (SELECT pg_get_serial_sequence('pggit.webhooks', 'webhook_id') AS name) s
 WHERE s.name IS NOT NULL AND has_sequence_privilege(s.name, 'UPDATE')
   AND %(webhook_id)s BETWEEN coalesce(pg_sequence_last_value(s.name::regclass), 0) + 1
                          AND %(highest)s
