-- Roles that may enqueue, work or administer own nothing. What an insert has to
-- look at or change beyond its own rows, these functions do for it with the
-- rights of the schema's owner: tell whether an id is known, who holds a unique
-- key, change the holder as the new job says, and take slots of limited queues.
--
-- Nobody may call a function that acts for the owner unless a role was granted
-- that: migrate.Grants, or roles.sql, has the grants.
ALTER FUNCTION {schema}.jobs_known SECURITY DEFINER;
ALTER FUNCTION {schema}.unique_holder SECURITY DEFINER;
ALTER FUNCTION {schema}.take_over SECURITY DEFINER;
ALTER FUNCTION {schema}.take_slots SECURITY DEFINER;

REVOKE EXECUTE ON FUNCTION
    {schema}.jobs_known, {schema}.unique_holder, {schema}.take_over, {schema}.take_slots,
    {schema}.make_partitions, {schema}.drop_expired, {schema}.rotate, {schema}.guard_lane
    FROM PUBLIC;
