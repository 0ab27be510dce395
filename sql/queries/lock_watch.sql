-- The flag, and who holds the duty to be notified, change under this lock, one change at a time: a
-- row that only workers may lock. Where somebody removed it, it is made again; then the INSERT is
-- what others wait for.
WITH missing AS (
    INSERT INTO pggit.watch DEFAULT VALUES ON CONFLICT DO NOTHING
)
SELECT FROM pggit.watch FOR UPDATE
