-- Grants for three roles, which own nothing. Run it as the owner of the schema,
-- and again after each migration: it first takes back what it has granted.
--
-- The roles are made if they are not there, without the right to log in: grant
-- them to those of your programs. Without CREATEROLE, have them made before.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SELECT pg_advisory_xact_lock({lock});

DO $roles$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['{enqueue_name}', '{work_name}', '{admin_name}'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;
END
$roles$;

REVOKE ALL ON SCHEMA {schema} FROM {enqueue}, {work}, {admin};
REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {enqueue}, {work}, {admin};
REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM {enqueue}, {work}, {admin};
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC, {enqueue}, {work}, {admin};
GRANT USAGE ON SCHEMA {schema} TO {enqueue}, {work}, {admin};

-- Enqueue: insert by every way of the library, and by enqueue() in SQL, and let
-- held jobs go. It reads no jobs: of what others have inserted it sees names of
-- queues and their limits, unique keys, and ids.
GRANT INSERT (id, queue, kind, priority, lane, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
    ON {schema}.job_queue TO {enqueue};
GRANT INSERT (id, run_at, reason, queue, kind, priority, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
    ON {schema}.job_waiting TO {enqueue};
GRANT INSERT (id, payload, raw) ON {schema}.job_payload TO {enqueue};
GRANT INSERT (fingerprint, job_id) ON {schema}.job_fingerprint TO {enqueue};
GRANT INSERT (queue, priority), SELECT (queue, priority) ON {schema}.job_lane TO {enqueue};
GRANT SELECT (queue, max_live) ON {schema}.job_bound TO {enqueue};
GRANT INSERT (scope, key, job_id), SELECT (scope, key, job_id) ON {schema}.job_unique TO {enqueue};
GRANT INSERT (id), SELECT (id), DELETE ON {schema}.job_client_id TO {enqueue};
GRANT INSERT (job_id, gate, key, run_at, blocks) ON {schema}.job_gated TO {enqueue};
GRANT INSERT (gate, arrived) ON {schema}.job_gate_look TO {enqueue};
GRANT EXECUTE ON FUNCTION
    {schema}.enqueue, {schema}.unique_key, {schema}.canonical, {schema}.jobs_known, {schema}.unique_holder,
    {schema}.take_over, {schema}.take_slots, {schema}.hold_jobs, {schema}.commit_held
    TO {enqueue};

-- Work: the whole life of jobs, sweeps, archive and partitions included, but no
-- say in how queues are run.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {work}, {admin};
REVOKE INSERT, UPDATE, DELETE ON {schema}.schema_migration FROM {work}, {admin};
REVOKE INSERT, UPDATE, DELETE ON {schema}.job_bound, {schema}.job_pause, {schema}.job_gate_weight FROM {work};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {work}, {admin};

-- Administer: that, and limits, pauses and shares of queues. Migrations are for the
-- owner.
REVOKE EXECUTE ON FUNCTION {schema}.set_queue_limit FROM {work};

COMMIT;
