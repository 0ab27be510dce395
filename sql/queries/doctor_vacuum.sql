-- Of %(tables)s: whether autovacuum may work on them, and whether it does.
SELECT c.relname AS name, coalesce(o.enabled, true) AS enabled, s.n_dead_tup AS dead_rows,
       coalesce(o.threshold, current_setting('autovacuum_vacuum_threshold')::float8)
           + coalesce(o.factor, current_setting('autovacuum_vacuum_scale_factor')::float8)
             * greatest(c.reltuples, 0) AS bearable,
       extract(epoch FROM now() - greatest(s.last_vacuum, s.last_autovacuum))::float8 AS vacuumed_s
  FROM pg_class c
  JOIN pg_stat_all_tables s ON s.relid = c.oid
 CROSS JOIN LATERAL (
    SELECT bool_and(option_value::bool)
               FILTER (WHERE option_name = 'autovacuum_enabled') AS enabled,
           max(option_value::float8)
               FILTER (WHERE option_name = 'autovacuum_vacuum_threshold')
               AS threshold,
           max(option_value::float8)
               FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor') AS factor
      FROM (SELECT option_name, CASE WHEN option_name LIKE 'autovacuum_%%'
                                     THEN option_value END AS option_value
              FROM pg_options_to_table(c.reloptions)) x) o
 WHERE c.relnamespace = 'pggit'::regnamespace AND c.relname = ANY (%(tables)s::text[])
 ORDER BY c.relname
