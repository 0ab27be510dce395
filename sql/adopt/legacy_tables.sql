-- Changes the tables of an earlier pggit so that migration 0001 fits, which adds the columns that
-- are still missing. Rows, extra columns, grants, indexes and foreign keys stay. What cannot be
-- changed raises WD001; then the transaction is rolled back and nothing has changed. Without such
-- tables nothing happens.
DO $adopt$
DECLARE
    -- For each column: our type; the value for NULLs; our default; whether it is NOT NULL; our
    -- CHECK. "ours" are columns that only webhookd creates: one that exists already has another
    -- meaning.
    shape CONSTANT jsonb := $json$
    {"webhooks": {
        "webhook_id":   {"type": "bigint", "required": true},
        "url":          {"type": "text", "required": true},
        "enabled":      {"type": "boolean", "null": "true", "default": "true", "required": true},
        "disabled_reason": {"type": "text"},
        "secret":       {"type": "text"},
        "headers":      {"type": "jsonb", "check": "pg_catalog.jsonb_typeof(headers) = 'object'"},
        "timeout_seconds": {"type": "double precision",
                            "check": "timeout_seconds > 0 AND timeout_seconds <= 600"},
        "max_in_flight": {"type": "integer", "check": "max_in_flight >= 1"},
        "rate_limit_per_second": {"type": "double precision",
            "check": "rate_limit_per_second >= 0 AND rate_limit_per_second < 'Infinity'"},
        "rate_limit_burst": {"type": "integer", "check": "rate_limit_burst >= 1"},
        "retry_base_seconds": {"type": "double precision",
            "check": "retry_base_seconds > 0 AND retry_base_seconds < 'Infinity'"},
        "retry_max_seconds": {"type": "double precision",
                              "check": "retry_max_seconds > 0 AND retry_max_seconds < 'Infinity'"},
        "circuit_failure_threshold": {"type": "integer", "check": "circuit_failure_threshold >= 1"},
        "circuit_open_seconds": {"type": "double precision",
            "check": "circuit_open_seconds > 0 AND circuit_open_seconds < 'Infinity'"},
        "created_at":   {"type": "timestamp with time zone", "null": "now()", "default": "now()",
                         "required": true},
        "name":         {"type": "text"},
        "uid":          {"type": "text"},
        "tenant":       {"type": "text", "null": "'default'", "default": "'default'",
                         "required": true},
        "labels":       {"type": "jsonb"},
        "max_retries": "ours", "retry_factor": "ours", "old_secret": "ours",
        "old_secret_until": "ours"},
     "alert_delivery_queue": {
        "delivery_id":  {"type": "bigint", "required": true},
        "alert_id":     {"type": "bigint"},
        "webhook_id":   {"type": "bigint", "required": true},
        "message_body": {"type": "jsonb", "required": true},
        "delivery_status": {"type": "text", "default": "'pending'", "required": true,
                            "values": ["pending", "retrying", "delivered", "failed"]},
        "retry_count":  {"type": "integer", "null": "0", "default": "0", "required": true},
        "max_retries":  {"type": "integer", "null": "3", "default": "3", "required": true},
        "next_retry_at": {"type": "timestamp with time zone", "null": "coalesce(created_at, now())",
                          "default": "now()", "required": true},
        "worker_id":    {"type": "text"},
        "created_at":   {"type": "timestamp with time zone", "null": "now()", "default": "now()",
                         "required": true},
        "attempted_at": {"type": "timestamp with time zone"},
        "delivered_at": {"type": "timestamp with time zone"},
        "first_attempted_at": "ours", "attempts": "ours", "routed": "ours", "lease_token": "ours",
        "lease_until": "ours", "leased_by": "ours", "leases_lost": "ours", "status": "ours",
        "ended_at": "ours", "body_bytes": "ours"},
     "alert_delivery_log": {
        "log_id":       {"type": "bigint", "required": true},
        "delivery_id":  {"type": "bigint"},
        "webhook_id":   {"type": "bigint"},
        "event_type":   {"type": "text", "required": true},
        "event_details": {"type": "jsonb"},
        "created_at":   {"type": "timestamp with time zone", "null": "now()", "default": "now()",
                         "required": true},
        "http_status":  {"type": "integer"},
        "response_time_ms": {"type": "double precision"},
        "worker_id":    {"type": "text"}},
     "webhook_health_metrics": {
        "webhook_id":   {"type": "bigint", "required": true},
        "health_status": {"type": "text", "null": "'unknown'", "default": "'unknown'",
                          "required": true,
                          "values": ["unknown", "healthy", "degraded", "unavailable"],
            "check": "health_status IN ('unknown', 'healthy', 'degraded', 'unavailable')"},
        "total_deliveries": {"type": "bigint", "null": "0", "default": "0", "required": true},
        "successful_deliveries": {"type": "bigint", "null": "0", "default": "0", "required": true},
        "failed_deliveries": {"type": "bigint", "null": "0", "default": "0", "required": true},
        "avg_response_time_ms": {"type": "numeric"},
        "min_response_time_ms": {"type": "numeric"},
        "max_response_time_ms": {"type": "numeric"},
        "consecutive_failures": {"type": "integer", "null": "0", "default": "0", "required": true},
        "last_check_at": {"type": "timestamp with time zone"},
        "last_success_at": {"type": "timestamp with time zone"},
        "last_failure_at": {"type": "timestamp with time zone"},
        "response_time_sum_ms": "ours", "circuit_state": "ours", "circuit_epoch": "ours",
        "circuit_until": "ours", "hold_until": "ours", "tokens": "ours", "tokens_at": "ours",
        "in_flight": "ours", "runnable_at": "ours", "blocked_by": "ours",
        "blocked_reason": "ours", "failing_since": "ours", "exchange_seconds": "ours",
        "slow": "ours"}}
    $json$;
    -- The types that can become each of our types without an unnoticed loss (a number out of range
    -- is an error).
    sources CONSTANT jsonb := $json$
    {"bigint": ["integer", "smallint"], "integer": ["smallint", "bigint"],
     "double precision": ["real", "numeric", "integer", "bigint", "smallint"],
     "numeric": ["double precision", "real", "integer", "bigint", "smallint"],
     "text": ["character varying", "character"], "jsonb": ["json"], "boolean": [],
     "timestamp with time zone": ["timestamp without time zone"]}
    $json$;
    -- Other names that a registry may use for our columns.
    other_names CONSTANT jsonb := $json$
    {"webhook_id": ["id"], "url": ["endpoint_url", "webhook_url", "target_url", "endpoint"],
     "enabled": ["active", "is_active", "is_enabled"]}
    $json$;
    zone     text;
    relation regclass;
    known    record;
    col      record;
    wanted   jsonb;
    names    text[];
    types    text[];
    nulls    text[];
    empty    text[];
    settings text[];
    rows     bigint;
    value    text;
BEGIN
    -- Otherwise the UPDATEs below leave deferred trigger events, and ALTER TABLE refuses to run.
    SET CONSTRAINTS ALL IMMEDIATE;

    -- Times without a zone were written in the zone of the database.
    SELECT coalesce((SELECT substr(setting, strpos(setting, '=') + 1)
                       FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,
                            unnest(s.setconfig) AS setting
                      WHERE d.datname = current_database() AND s.setrole = 0
                        AND setting ILIKE 'timezone=%'),
                    (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone')) INTO zone;

    FOR known IN SELECT c.oid, c.relname, c.relkind, shape -> c.relname::text AS columns
                   FROM pg_class c
                  WHERE c.relnamespace = to_regnamespace('pggit') AND shape ? c.relname::text
    LOOP
        IF known.relkind <> 'r' THEN
            RAISE EXCEPTION USING ERRCODE = 'WD001', MESSAGE = format(
                'pggit.%I is not an ordinary table', known.relname);
        END IF;
        relation := known.oid::regclass;

        IF known.relname = 'webhooks' THEN
            FOR col IN SELECT key AS ours,
                              ARRAY(SELECT jsonb_array_elements_text(o.value)) AS others
                         FROM jsonb_each(other_names) AS o
            LOOP
                CONTINUE WHEN EXISTS (
                    SELECT FROM pg_attribute
                     WHERE attrelid = relation AND attname = col.ours AND NOT attisdropped);
                SELECT array_agg(attname::text) INTO names FROM pg_attribute
                 WHERE attrelid = relation AND attname = ANY (col.others) AND NOT attisdropped;
                IF cardinality(names) = 1 THEN
                    EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I',
                                   relation, names[1], col.ours);
                ELSIF names IS NOT NULL THEN
                    RAISE EXCEPTION USING ERRCODE = 'WD001', MESSAGE = format(
                        'pggit.webhooks has no column %s and several that could be it: %s',
                        col.ours, array_to_string(names, ', '));
                ELSIF col.ours <> 'enabled' THEN
                    RAISE EXCEPTION USING ERRCODE = 'WD001', MESSAGE = format(
                        'pggit.webhooks has no column %s', col.ours);
                END IF;
            END LOOP;
        END IF;

        -- The CHECKs on columns that get more values than an earlier pggit knew.
        FOR col IN SELECT conname FROM pg_constraint
                    WHERE conrelid = relation AND contype = 'c'
                      AND EXISTS (
                          SELECT FROM pg_attribute
                           WHERE attrelid = relation AND attnum = ANY (conkey)
                             AND attname IN ('delivery_status', 'event_type', 'health_status'))
        LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', relation, col.conname);
        END LOOP;

        types := '{}'; nulls := '{}'; empty := '{}'; settings := '{}';
        FOR col IN SELECT a.attname AS name, a.attnotnull, a.attidentity, a.attgenerated,
                          a.atthasdef, t.typtype, format_type(a.atttypid, NULL) AS type,
                          EXISTS (SELECT FROM pg_index i
                                   WHERE i.indrelid = relation AND i.indisprimary
                                     AND a.attnum = ANY (i.indkey)) AS in_key
                     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
                    ORDER BY a.attnum
        LOOP
            wanted := known.columns -> col.name;
            IF wanted = '"ours"' OR (wanted IS NOT NULL AND col.attgenerated <> '') THEN
                RAISE EXCEPTION USING ERRCODE = 'WD001', MESSAGE = format(
                    '%s has a column %I, which webhookd needs for itself: rename it',
                    relation, col.name);
            END IF;
            -- A NOT NULL column that webhookd's own INSERTs do not name: an extra one without a
            -- default, or one of ours that may be NULL.
            IF col.attnotnull AND NOT col.in_key AND col.attidentity = ''
               AND NOT coalesce((wanted -> 'required')::boolean, wanted IS NULL AND col.atthasdef)
            THEN
                settings := settings || format('ALTER COLUMN %I DROP NOT NULL', col.name);
            END IF;
            CONTINUE WHEN wanted IS NULL;

            IF wanted ? 'default' THEN
                types := types || format('ALTER COLUMN %I DROP DEFAULT', col.name);
                settings := settings || format('ALTER COLUMN %I SET DEFAULT %s',
                                               col.name, wanted ->> 'default');
            END IF;
            IF col.type = 'timestamp without time zone'
               AND wanted ->> 'type' = 'timestamp with time zone' THEN
                types := types || format(
                    'ALTER COLUMN %I TYPE timestamptz USING %1$I AT TIME ZONE %L', col.name, zone);
            ELSIF col.type <> wanted ->> 'type' THEN
                IF NOT (sources -> (wanted ->> 'type') ? col.type)
                   AND NOT (wanted ->> 'type' = 'text' AND col.typtype = 'e') THEN
                    RAISE EXCEPTION USING ERRCODE = 'WD001', MESSAGE = format(
                        '%s.%I is of type %s, which cannot become %s',
                        relation, col.name, col.type, wanted ->> 'type');
                END IF;
                types := types || format('ALTER COLUMN %I TYPE %s USING %1$I::%2$s',
                                         col.name, wanted ->> 'type');
            END IF;
            IF wanted ? 'null' AND NOT col.attnotnull THEN
                nulls := nulls || format('%I = coalesce(%1$I, %s)', col.name, wanted ->> 'null');
                empty := empty || format('%I IS NULL', col.name);
            END IF;
            IF (wanted -> 'required')::boolean AND NOT col.attnotnull THEN
                settings := settings || format('ALTER COLUMN %I SET NOT NULL', col.name);
            END IF;
            IF wanted ? 'check' THEN
                settings := settings || format('ADD CHECK (%s)', wanted ->> 'check');
            END IF;
            IF wanted ? 'values' THEN
                EXECUTE format('SELECT %1$I::text, count(*) FROM %2$s'
                               ' WHERE %1$I::text <> ALL (%3$L)'
                               ' GROUP BY 1 ORDER BY 2 DESC LIMIT 1',
                               col.name, relation,
                               ARRAY(SELECT jsonb_array_elements_text(wanted -> 'values')))
                   INTO value, rows;
                IF rows IS NOT NULL THEN
                    RAISE EXCEPTION USING ERRCODE = 'WD001', MESSAGE = format(
                        '%s.%I is %L in %s rows, and may only be %s',
                        relation, col.name, value, rows,
                        (SELECT string_agg(v, ', ')
                           FROM jsonb_array_elements_text(wanted -> 'values') AS v));
                END IF;
            END IF;
        END LOOP;

        IF types <> '{}' THEN
            EXECUTE format('ALTER TABLE %s %s', relation, array_to_string(types, ', '));
        END IF;
        IF nulls <> '{}' THEN
            EXECUTE format('UPDATE %s SET %s WHERE %s', relation, array_to_string(nulls, ', '),
                           array_to_string(empty, ' OR '));
        END IF;
        IF settings <> '{}' THEN
            EXECUTE format('ALTER TABLE %s %s', relation, array_to_string(settings, ', '));
        END IF;

        -- The column that identifies a row: unique, and with numbers generated by default.
        SELECT a.attname AS name, a.attnum, a.atthasdef, a.attidentity INTO col
          FROM pg_attribute a
         WHERE a.attrelid = relation AND NOT a.attisdropped
           AND a.attname = CASE known.relname WHEN 'alert_delivery_queue' THEN 'delivery_id'
                                              WHEN 'alert_delivery_log' THEN 'log_id'
                                              ELSE 'webhook_id' END;
        CONTINUE WHEN col.name IS NULL;
        IF NOT EXISTS (SELECT FROM pg_index i
                        WHERE i.indrelid = relation AND i.indisunique AND i.indimmediate
                          AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1
                          AND i.indkey[0] = col.attnum) THEN
            EXECUTE format('ALTER TABLE %s ADD %s (%I)', relation,
                           CASE WHEN EXISTS (SELECT FROM pg_index i
                                              WHERE i.indrelid = relation AND i.indisprimary)
                                THEN 'UNIQUE' ELSE 'PRIMARY KEY' END, col.name);
        END IF;
        IF known.relname <> 'webhook_health_metrics' AND NOT col.atthasdef
           AND col.attidentity = '' THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I ADD GENERATED BY DEFAULT AS IDENTITY',
                           relation, col.name);
            EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, %L),'
                           ' coalesce(max(%I), 0) + 1, false) FROM %s',
                           relation, col.name, col.name, relation) INTO rows;
        END IF;
    END LOOP;
END
$adopt$;
