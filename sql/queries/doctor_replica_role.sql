-- Roles and databases whose sessions start with session_replication_role = replica, in which no
-- ordinary trigger fires.
SELECT x.who, 'ALTER ' || x.who || ' RESET session_replication_role' AS command
  FROM (SELECT s.setconfig,
               CASE WHEN r.rolname IS NOT NULL
                    THEN 'ROLE ' || quote_ident(r.rolname) 
                         || coalesce(' IN DATABASE ' || quote_ident(d.datname), '')
                    WHEN d.datname IS NOT NULL THEN 'DATABASE ' || quote_ident(d.datname)
                    ELSE 'ROLE ALL' END AS who
          FROM pg_db_role_setting s
          LEFT JOIN pg_roles r ON r.oid = s.setrole
          LEFT JOIN pg_database d ON d.oid = s.setdatabase
         WHERE s.setdatabase = 0 OR d.datname = current_database()) x
 WHERE 'session_replication_role=replica' = ANY (x.setconfig)
