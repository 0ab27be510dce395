-- Sum up finished_counts, unless there is little to sum. One worker at a time does it; rows that a
-- record adds meanwhile stay.
WITH folded AS (
    DELETE FROM pggit.finished_counts
     WHERE (SELECT count(*) FROM pggit.finished_counts) > 20
    RETURNING delivered, failed
)
INSERT INTO pggit.finished_counts (delivered, failed)
SELECT sum(delivered), sum(failed) FROM folded HAVING count(*) > 0
