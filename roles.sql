-- Grants for three roles, which own nothing. Run it as the owner of the schema,
-- and again after each migration: it first takes back what it has granted.
--
-- The roles are made if they are not there, without the right to log in: grant
-- them to those of your programs. Without CREATEROLE, have them made before.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SELECT pg_advisory_xact_lock(4501424693070463611);

DO $roles$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['simplequeue_enqueue', 'simplequeue_work', 'simplequeue_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;
END
$roles$;

REVOKE ALL ON SCHEMA "simplequeue" FROM "simplequeue_enqueue", "simplequeue_work", "simplequeue_admin";
REVOKE ALL ON ALL TABLES IN SCHEMA "simplequeue" FROM "simplequeue_enqueue", "simplequeue_work", "simplequeue_admin";
REVOKE ALL ON ALL SEQUENCES IN SCHEMA "simplequeue" FROM "simplequeue_enqueue", "simplequeue_work", "simplequeue_admin";
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA "simplequeue" FROM PUBLIC, "simplequeue_enqueue", "simplequeue_work", "simplequeue_admin";
GRANT USAGE ON SCHEMA "simplequeue" TO "simplequeue_enqueue", "simplequeue_work", "simplequeue_admin";

-- Enqueue: insert by every way of the library, and by enqueue() in SQL, and let
-- held jobs go. It reads no jobs: of what others have inserted it sees names of
-- queues and their limits, unique keys, and ids.
GRANT INSERT (id, queue, kind, priority, lane, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
    ON "simplequeue".job_queue TO "simplequeue_enqueue";
GRANT INSERT (id, run_at, reason, queue, kind, priority, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
    ON "simplequeue".job_waiting TO "simplequeue_enqueue";
GRANT INSERT (id, payload, raw) ON "simplequeue".job_payload TO "simplequeue_enqueue";
GRANT INSERT (fingerprint, job_id) ON "simplequeue".job_fingerprint TO "simplequeue_enqueue";
GRANT INSERT (queue, priority), SELECT (queue, priority) ON "simplequeue".job_lane TO "simplequeue_enqueue";
GRANT SELECT (queue, max_live) ON "simplequeue".job_bound TO "simplequeue_enqueue";
GRANT INSERT (scope, key, job_id), SELECT (scope, key, job_id) ON "simplequeue".job_unique TO "simplequeue_enqueue";
GRANT INSERT (id), SELECT (id), DELETE ON "simplequeue".job_client_id TO "simplequeue_enqueue";
GRANT INSERT (job_id, gate, key, run_at, blocks) ON "simplequeue".job_gated TO "simplequeue_enqueue";
GRANT INSERT (gate, arrived) ON "simplequeue".job_gate_look TO "simplequeue_enqueue";
GRANT EXECUTE ON FUNCTION
    "simplequeue".enqueue, "simplequeue".unique_key, "simplequeue".canonical, "simplequeue".jobs_known, "simplequeue".unique_holder,
    "simplequeue".take_over, "simplequeue".take_slots, "simplequeue".hold_jobs, "simplequeue".commit_held
    TO "simplequeue_enqueue";

-- Work: the whole life of jobs, sweeps, archive and partitions included, but no
-- say in how queues are run.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "simplequeue" TO "simplequeue_work", "simplequeue_admin";
REVOKE INSERT, UPDATE, DELETE ON "simplequeue".schema_migration FROM "simplequeue_work", "simplequeue_admin";
REVOKE INSERT, UPDATE, DELETE ON "simplequeue".job_bound, "simplequeue".job_pause, "simplequeue".job_gate_weight FROM "simplequeue_work";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA "simplequeue" TO "simplequeue_work", "simplequeue_admin";

-- Administer: that, and limits, pauses and shares of queues. Migrations are for the
-- owner.
REVOKE EXECUTE ON FUNCTION "simplequeue".set_queue_limit FROM "simplequeue_work";

COMMIT;
