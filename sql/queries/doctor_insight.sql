-- Whether this role may see what other roles' sessions do.
SELECT current_user AS role, pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all
