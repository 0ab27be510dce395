-- What the roles lack that workers connect as (this session's role, where no worker is connected),
-- and what grants it.
WITH connected AS (
    SELECT DISTINCT usename::text AS role
      FROM pg_stat_activity
     WHERE datname = current_database()
       AND application_name ~ '^webhookd/.+/(work|listen|boot)$'
       AND usename IS NOT NULL
), worker AS (
    SELECT role FROM connected
    UNION
    SELECT current_user::text WHERE NOT EXISTS (SELECT FROM connected)
), lacked AS (
    SELECT w.role, c.oid::regclass::text AS object,
           string_agg(p.privilege, ', ' ORDER BY p.place) AS privileges
      FROM worker w
     CROSS JOIN pg_class c
     CROSS JOIN LATERAL unnest(CASE WHEN c.relname IN ('installation', 'webhookd_migrations')
                                    THEN ARRAY['SELECT']
                                    WHEN c.relkind = 'v' THEN ARRAY['SELECT']
                                    ELSE ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END)
                        WITH ORDINALITY AS p (privilege, place)
     WHERE c.relnamespace = 'pggit'::regnamespace AND c.relname = ANY (%(tables)s::text[])
       AND (c.relkind <> 'v' OR c.relname = 'v_waiting_deliveries')  -- others are for people
       AND NOT has_table_privilege(w.role, c.oid, p.privilege)
     GROUP BY w.role, c.oid
)
SELECT role, 'USAGE on the schema pggit' AS what,
       format('GRANT USAGE ON SCHEMA pggit TO %%I', role) AS command
  FROM worker WHERE NOT has_schema_privilege(role, 'pggit', 'USAGE')
 UNION ALL
SELECT role, privileges || ' on ' || string_agg(object, ', ' ORDER BY object),
       format('GRANT %%s ON %%s TO %%I', privileges, string_agg(object, ', ' ORDER BY object), role)
  FROM lacked GROUP BY role, privileges
 UNION ALL
SELECT role, 'SELECT and UPDATE on pggit.wake_flag',
       format('GRANT SELECT, UPDATE ON SEQUENCE pggit.wake_flag TO %%I', role)
  FROM worker, pg_class c
 WHERE c.relnamespace = 'pggit'::regnamespace AND c.relname = 'wake_flag'
   AND NOT (has_sequence_privilege(role, c.oid, 'SELECT')
            AND has_sequence_privilege(role, c.oid, 'UPDATE'))
 UNION ALL
SELECT role, 'UPDATE (max_body_bytes) on pggit.installation',
       format('GRANT UPDATE (max_body_bytes) ON pggit.installation TO %%I', role)
  FROM worker, pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'max_body_bytes'
 WHERE c.relnamespace = 'pggit'::regnamespace AND c.relname = 'installation'
   AND NOT has_column_privilege(role, a.attrelid, a.attnum, 'UPDATE')
 UNION ALL
SELECT role, 'EXECUTE on pggit.measure_bodies',
       format('GRANT EXECUTE ON FUNCTION %%s TO %%I', p.oid::regprocedure, role)
  FROM worker, pg_proc p
 WHERE p.pronamespace = 'pggit'::regnamespace AND p.proname = 'measure_bodies'
   AND NOT has_function_privilege(role, p.oid, 'EXECUTE')
