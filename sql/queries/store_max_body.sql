-- The trigger that refuses longer bodies reads it there.
UPDATE pggit.installation SET max_body_bytes = %(max_body)s WHERE max_body_bytes <> %(max_body)s
