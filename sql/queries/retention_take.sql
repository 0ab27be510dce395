-- Where the round through %(table_name)s stands, unless another worker is at it: the next page, all
-- pages, and for how many seconds no worker went on.
SELECT r.next_page,
       pg_relation_size('pggit.' || r.table_name) / current_setting('block_size')::bigint,
       extract(epoch FROM now() - r.turned_at)::float8
  FROM pggit.retention r
 WHERE r.table_name = %(table_name)s
   FOR UPDATE SKIP LOCKED
