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

