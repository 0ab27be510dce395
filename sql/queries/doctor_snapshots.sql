-- What keeps vacuum from removing dead rows of this database: for longer than old_s, or by more
-- than old_xids transactions where no time is known. Who it is, and the statement that ends it.
SELECT format('session %%s of %%s (%%s, %%s) has been in a transaction', pid, usename,
              coalesce(nullif(application_name, ''), 'no name'), state) AS holder,
       extract(epoch FROM now() - xact_start)::float8 AS age_s,
       age(coalesce(backend_xmin, backend_xid)) AS xids,
       format('SELECT pg_terminate_backend(%%s)', pid) AS command
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
   AND xact_start < now() - %(old_s)s * interval '1 second'
   AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)  -- vacuum itself holds nothing back
 UNION ALL
SELECT format('transaction %%s of %%s has been prepared and not finished',
              quote_literal(gid), owner),
       extract(epoch FROM now() - prepared)::float8, age(transaction),
       format('ROLLBACK PREPARED %%L', gid)
  FROM pg_prepared_xacts
 WHERE database = current_database() AND prepared < now() - %(old_s)s * interval '1 second'
 UNION ALL
SELECT format('replication slot %%s (%%s) has held rows back', slot_name,
              CASE WHEN active THEN 'in use' ELSE 'nobody uses it' END),
       NULL, greatest(age(xmin), age(catalog_xmin)),
       format('SELECT pg_drop_replication_slot(%%L)', slot_name)
  FROM pg_replication_slots
 WHERE greatest(age(xmin), age(catalog_xmin)) >= %(old_xids)s
   AND (xmin IS NOT NULL OR database = current_database())
 UNION ALL
SELECT format('standby %%s has held rows back by hot_standby_feedback', application_name),
       NULL, age(backend_xmin),
       format('SELECT pg_terminate_backend(%%s)', pid)
  FROM pg_stat_replication
 WHERE age(backend_xmin) >= %(old_xids)s
 ORDER BY age_s DESC NULLS LAST
