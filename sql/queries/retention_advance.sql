-- The pages before %(next_page)s are done; 0: the round is, and the next begins.
UPDATE pggit.retention
   SET next_page = %(next_page)s, turned_at = now(), removed = removed + %(removed)s,
       lap_started_at = CASE WHEN %(next_page)s = 0 THEN now() ELSE lap_started_at END
 WHERE table_name = %(table_name)s
