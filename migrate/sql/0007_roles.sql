-- Roles that may enqueue, work or administer own nothing. What an insert has to
-- look at or change beyond its own rows, these functions do for it with the
-- rights of the schema's owner: tell whether an id is known, who holds a unique
-- key, change the holder as the new job says, take slots of limited queues, give
-- places at gates, hold jobs and let held ones go. enqueue() does all it does so.
--
-- Nobody may call a function that acts for the owner unless a role was granted
-- that: migrate.Grants, or roles.sql, has the grants.

-- Notes until when jobs are held. A function, because a row that a job has left
-- which was cancelled is changed, and who may insert may not see or change rows
-- of other jobs.
CREATE FUNCTION {schema}.hold_jobs(ids uuid[], holds_us bigint[], run_ats timestamptz[], delays_us bigint[], gated boolean[])
RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now CONSTANT timestamptz := clock_timestamp();
BEGIN
    INSERT INTO {schema}.job_held (job_id, expires_at, run_at, gated)
    SELECT i.id, now + i.hold_us * interval '1 microsecond',
           coalesce(i.run_at, now + i.delay_us * interval '1 microsecond'), i.gated
    FROM unnest(ids, holds_us, run_ats, delays_us, hold_jobs.gated) AS i(id, hold_us, run_at, delay_us, gated)
    ON CONFLICT ON CONSTRAINT job_held_pkey DO UPDATE
    SET expires_at = excluded.expires_at, run_at = excluded.run_at, gated = excluded.gated;
END
$$;

ALTER FUNCTION {schema}.jobs_known SECURITY DEFINER;
ALTER FUNCTION {schema}.unique_holder SECURITY DEFINER;
ALTER FUNCTION {schema}.take_over SECURITY DEFINER;
ALTER FUNCTION {schema}.take_slots SECURITY DEFINER;
ALTER FUNCTION {schema}.give_places SECURITY DEFINER;
ALTER FUNCTION {schema}.commit_held SECURITY DEFINER;
ALTER FUNCTION {schema}.enqueue SECURITY DEFINER;

REVOKE EXECUTE ON FUNCTION
    {schema}.jobs_known, {schema}.unique_holder, {schema}.take_over, {schema}.take_slots,
    {schema}.give_places, {schema}.hold_jobs, {schema}.commit_held, {schema}.enqueue,
    {schema}.make_partitions, {schema}.drop_expired, {schema}.rotate, {schema}.guard_lane, {schema}.expire_outcomes,
    {schema}.lower_limits
    FROM PUBLIC;
