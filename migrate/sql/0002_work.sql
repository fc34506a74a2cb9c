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
