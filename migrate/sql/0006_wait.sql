-- The outcomes of jobs that somebody may be waiting for and of which nothing
-- else is kept: how they ended, with which result, without their payloads. They
-- stay for ten minutes at least. Each ten minutes another of the four tables is
-- filled, and one that was filled before is emptied, so that expiry deletes no
-- rows.
CREATE TABLE {schema}.job_outcome (
    id              uuid        NOT NULL,
    created_at      timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker_id       uuid,
    slot            integer     NOT NULL DEFAULT (floor(extract(epoch FROM clock_timestamp()) / 600)::bigint & 3)::integer,
    attempt         integer     NOT NULL,
    max_attempts    integer     NOT NULL,
    reprocess_count integer     NOT NULL,
    crash_count     integer     NOT NULL,
    priority        smallint    NOT NULL,
    state           text        NOT NULL,
    queue           text        NOT NULL,
    kind            text        NOT NULL,
    unique_key      text,
    fingerprint     text,
    reason          text,
    errors          jsonb,
    props           jsonb,
    result          jsonb
) PARTITION BY LIST (slot);
CREATE INDEX job_outcome_id ON {schema}.job_outcome (id);
CREATE TABLE {schema}.job_outcome_0 PARTITION OF {schema}.job_outcome FOR VALUES IN (0);
CREATE TABLE {schema}.job_outcome_1 PARTITION OF {schema}.job_outcome FOR VALUES IN (1);
CREATE TABLE {schema}.job_outcome_2 PARTITION OF {schema}.job_outcome FOR VALUES IN (2);
CREATE TABLE {schema}.job_outcome_3 PARTITION OF {schema}.job_outcome FOR VALUES IN (3);

-- Empties the table of job_outcome whose ten minutes have been over for ten more,
-- and reports whether it has. It never waits for a lock: in use, the table is
-- tried again at the next call, or when its turn comes again.
CREATE FUNCTION {schema}.expire_outcomes()
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Two before the one that is filled now; two after it as well, so that it is
    -- not filled while this runs.
    child text := 'job_outcome_' || ((floor(extract(epoch FROM clock_timestamp()) / 600)::bigint + 2) & 3);
BEGIN
    IF pg_relation_size(to_regclass(format('%I.%I', '{schema_name}', child))) = 0 THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE NOWAIT', '{schema_name}', child);
    EXECUTE format('TRUNCATE %I.%I', '{schema_name}', child);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
