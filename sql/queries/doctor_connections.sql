-- Every limit on connections that applies to this role here, how much of it is used, and how it is
-- raised.
SELECT 'max_connections' AS name, 'ALTER SYSTEM SET max_connections = ' AS command,
       current_setting('max_connections')::int AS most,
       (SELECT sum(numbackends)::int FROM pg_stat_database)
           + current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0) AS used
 UNION ALL
SELECT 'the limit of role ' || rolname,
       format('ALTER ROLE %I CONNECTION LIMIT ', rolname), rolconnlimit,
       (SELECT count(*)::int FROM pg_stat_activity WHERE usename = current_user)
  FROM pg_roles
 WHERE rolname = current_user AND rolconnlimit >= 0 AND NOT rolsuper
 UNION ALL
SELECT 'the limit of database ' || d.datname,
       format('ALTER DATABASE %I CONNECTION LIMIT ', d.datname),
       d.datconnlimit, s.numbackends
  FROM pg_database d
  JOIN pg_stat_database s ON s.datid = d.oid
 WHERE d.datname = current_database() AND d.datconnlimit >= 0
   AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
