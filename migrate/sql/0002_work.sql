-- What a handler has done so far, by the names of its steps. A job with steps
-- has its payload here, however small, and payload_bytes above zero: whatever
-- takes a job from table to table, or ends it, treats them alike.
ALTER TABLE {schema}.job_payload ADD COLUMN steps jsonb;

-- Fails as a transaction does whose snapshot is too old for what it wants to
-- change, so that whoever runs it repeats it: one that began before a table of
-- job_running was emptied does not see the rows that were put back.
CREATE FUNCTION {schema}.snapshot_too_old()
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'could not serialize access: the running job has been moved since the transaction began'
        USING ERRCODE = 'serialization_failure', HINT = 'Repeat the transaction.';
END
$$;

-- What handlers have logged. Like the archive it is partitioned by the day on
-- which a line expires, so that expiry deletes no rows. A line is the seq-th of
-- its claim; at is the time at which it was logged, by the worker's clock.
CREATE TABLE {schema}.job_log (
    job_id     uuid        NOT NULL,
    claim_id   bigint      NOT NULL,
    seq        bigint      NOT NULL,
    at         timestamptz NOT NULL,
    expires_on date        NOT NULL,
    attempt    integer     NOT NULL,
    level      integer     NOT NULL,
    message    text        NOT NULL,
    attrs      jsonb,
    PRIMARY KEY (job_id, claim_id, seq, expires_on)
) PARTITION BY RANGE (expires_on);
CREATE TABLE {schema}.job_log_forever PARTITION OF {schema}.job_log
    FOR VALUES FROM ('9999-12-31') TO (MAXVALUE);

-- The functions that make and drop partitions do so for job_log too.
CREATE OR REPLACE FUNCTION {schema}.make_partitions(parent text, keep_seconds bigint[], days_ahead integer)
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day   date;
    child text;
    made  integer := 0;
BEGIN
    IF parent NOT IN ('job_queue_archive', 'job_queue_dlq', 'job_log') THEN
        RAISE EXCEPTION 'make_partitions: % has no partitions', parent USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('{schema_name}.partitions', 0));
    FOR day IN
        SELECT DISTINCT today + (k / 86400)::integer + n
        FROM unnest(keep_seconds) AS k, generate_series(0, least(days_ahead, 31) + 1) AS n
        WHERE k BETWEEN 0 AND 315360000
        ORDER BY 1
    LOOP
        child := parent || to_char(day, '"_p"YYYYMMDD');
        CONTINUE WHEN to_regclass(format('%I.%I', '{schema_name}', child)) IS NOT NULL;
        EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING ALL)', '{schema_name}', child, parent);
        EXECUTE format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES FROM (%4$L) TO (%5$L)',
            '{schema_name}', parent, child, day, day + 1);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

CREATE OR REPLACE FUNCTION {schema}.drop_expired(parent text)
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today   date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    child   text;
    dropped integer := 0;
BEGIN
    IF parent NOT IN ('job_queue_archive', 'job_queue_dlq', 'job_log') THEN
        RAISE EXCEPTION 'drop_expired: % has no partitions', parent USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR child IN
        SELECT c.relname
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass(format('%I.%I', '{schema_name}', parent))
          AND c.relname ~ '_p[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < today
        ORDER BY c.relname
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE NOWAIT', '{schema_name}', child);
        EXCEPTION WHEN lock_not_available THEN
            CONTINUE;
        END;
        BEGIN
            EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE NOWAIT', '{schema_name}', parent);
            EXECUTE format('DROP TABLE %I.%I', '{schema_name}', child);
            dropped := dropped + 1;
        EXCEPTION WHEN lock_not_available THEN
            EXECUTE format('TRUNCATE %I.%I', '{schema_name}', child);
        END;
    END LOOP;
    RETURN dropped;
END
$$;
