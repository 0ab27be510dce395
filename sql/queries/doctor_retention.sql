-- For how long the present round through each table has taken.
SELECT table_name, extract(epoch FROM now() - lap_started_at)::float8 AS lap_s
  FROM pggit.retention
 ORDER BY table_name
