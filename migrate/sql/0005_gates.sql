-- Gates: whatever holds jobs back together. A job that has to pass a gate waits
-- in job_waiting (reason gated) and has a row in job_gated; the admitter lets it
-- in, when it moves on to job_queue. A gate's name is its kind, its queue and
-- what else tells it apart, with tabs between: 'o' is an order key, or a queue
-- that is strictly first in, first out; 'f' are the fair shares of a queue. The
-- gates that a job has to pass, one after the other, are in its props. A gate at
-- which nothing waits and nobody is inside has no row anywhere.

-- Who waits at a gate, by place. An order gate gives its places at commit, in
-- the order of the commits; place is null until then, so a committed row has one.
CREATE TABLE {schema}.job_gated (
    job_id  uuid        NOT NULL PRIMARY KEY,
    gate    text        NOT NULL,
    key     text,                   -- of a fair gate: whose job it is
    arrived bigint      GENERATED ALWAYS AS IDENTITY,
    place   bigint,
    tx      xid8        NOT NULL DEFAULT pg_current_xact_id(),
    run_at  timestamptz,            -- null: at once
    blocks  boolean     NOT NULL DEFAULT false
);
CREATE INDEX job_gated_place ON {schema}.job_gated (gate, place) WHERE place IS NOT NULL;
CREATE INDEX job_gated_key ON {schema}.job_gated (gate, key, place) WHERE key IS NOT NULL;
CREATE INDEX job_gated_arriving ON {schema}.job_gated (tx) WHERE place IS NULL;
ALTER TABLE {schema}.job_gated SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);

CREATE SEQUENCE {schema}.job_gate_place;

-- Who is inside. An order gate has the slot 0 alone; who is inside of a fair gate
-- is runnable and not claimed yet, as far as the admitter knows. A job that ended dead and blocks its
-- key stays inside until an operator releases the key.
CREATE TABLE {schema}.job_gate_hold (
    gate       text        NOT NULL,
    slot       bigint      NOT NULL,
    job_id     uuid        NOT NULL,
    place      bigint      NOT NULL,
    blocks     boolean     NOT NULL,
    blocked_at timestamptz,
    PRIMARY KEY (gate, slot)
);
CREATE INDEX job_gate_hold_blocked ON {schema}.job_gate_hold (gate) WHERE blocked_at IS NOT NULL;
ALTER TABLE {schema}.job_gate_hold SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);

-- Gates to look at: written with each event that may open one, so that it is
-- neither lost nor seen before the event. after: all with a lower place, or this
-- one, have been let in.
CREATE TABLE {schema}.job_gate_look (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gate    text   NOT NULL,
    after   bigint,
    arrived uuid                    -- a job that has come to wait with this row
);
ALTER TABLE {schema}.job_gate_look SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0);

-- How much more than others a key gets of a fair gate. No row: 1.
CREATE TABLE {schema}.job_gate_weight (
    gate   text    NOT NULL,
    key    text    NOT NULL,
    weight integer NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    PRIMARY KEY (gate, key)
);

-- Jobs inserted to be committed later (reason held, run_at infinity), and when
-- that is too late. The job's row in job_waiting decides who comes first.
CREATE TABLE {schema}.job_held (
    job_id     uuid        NOT NULL PRIMARY KEY,
    expires_at timestamptz NOT NULL,
    run_at     timestamptz,         -- null: at once
    gated      boolean     NOT NULL
);
CREATE INDEX job_held_expires_at ON {schema}.job_held (expires_at);

-- The time of a fair gate for a key: of the key's last job in the line, or of the
-- last one let in, whoever it was of. Places of a fair gate are such times.
CREATE FUNCTION {schema}.fair_time(gate text, key text)
RETURNS bigint LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN greatest(
        coalesce(
            (SELECT max(o.place) FROM {schema}.job_gate_hold AS o WHERE o.gate = fair_time.gate),
            (SELECT n.place FROM {schema}.job_gated AS n WHERE n.gate = fair_time.gate AND n.place IS NOT NULL ORDER BY n.place LIMIT 1),
            0),
        (SELECT n.place FROM {schema}.job_gated AS n
         WHERE n.gate = fair_time.gate AND n.key = fair_time.key AND n.place IS NOT NULL
         ORDER BY n.place DESC LIMIT 1));
END
$$;

-- From one job of a key to the next.
CREATE FUNCTION {schema}.fair_step(gate text, key text)
RETURNS bigint LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN 1000000 / coalesce((SELECT w.weight FROM {schema}.job_gate_weight AS w
                               WHERE w.gate = fair_step.gate AND w.key = fair_step.key), 1);
END
$$;

-- Gives places to the jobs that this transaction has brought to gates: at its
-- end, so that of two transactions at one gate the first to commit has the lower
-- places. Until the commit is over it keeps others with jobs for the same gates
-- waiting; the locks are few, so that a transaction with many gates does not
-- fill the server's table of locks, and are taken in one order. Places are
-- unique: a job's says where in its gate all that came before it ends.
CREATE FUNCTION {schema}.give_places()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    places regclass := format('%I.job_gate_place', '{schema_name}')::regclass;
    bucket integer;
    come   record;
    gate   text;
    key    text;
    next   bigint;
    step   bigint;
BEGIN
    IF (SELECT g.place IS NOT NULL FROM {schema}.job_gated AS g WHERE g.job_id = NEW.arrived) THEN
        RETURN NULL; -- an earlier row has done it for all
    END IF;
    FOR bucket IN
        SELECT DISTINCT hashtext(g.gate || coalesce(E'\t' || g.key, '')) & 511
        FROM {schema}.job_gated AS g
        WHERE g.tx = pg_current_xact_id() AND g.place IS NULL
        ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock(hashtext('{schema_name}.gates'), bucket);
    END LOOP;
    -- Row by row: what a join would cost is up to statistics of any moment.
    FOR come IN
        SELECT g.job_id, g.gate, g.key
        FROM {schema}.job_gated AS g
        WHERE g.tx = pg_current_xact_id() AND g.place IS NULL
        ORDER BY g.gate COLLATE "C", g.key COLLATE "C", g.arrived
    LOOP
        IF come.key IS NULL THEN
            next := nextval(places);
        ELSE
            IF (come.gate, come.key) IS DISTINCT FROM (gate, key) THEN
                gate := come.gate;
                key := come.key;
                next := {schema}.fair_time(gate, key);
                step := {schema}.fair_step(gate, key);
            END IF;
            next := next + step;
        END IF;
        UPDATE {schema}.job_gated AS g SET place = next WHERE g.job_id = come.job_id;
    END LOOP;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER job_gate_look_arrived AFTER INSERT ON {schema}.job_gate_look
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.arrived IS NOT NULL)
    EXECUTE FUNCTION {schema}.give_places();

-- Lets held jobs go: to the queue, to their time or to their gate. The job's row
-- in job_waiting decides between a commit and the end of the hold: whoever has
-- locked it first finds it held, and nobody after. A function, because it runs in
-- callers' sessions: its plan is a probe for each id whatever their statistics
-- say. (reason || '' keeps an index out that would hold every waiting job.)
CREATE FUNCTION {schema}.commit_held(ids uuid[])
RETURNS TABLE (committed uuid, queue_name text, lane_number smallint, is_gated boolean) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT w.id
        FROM {schema}.job_waiting AS w
        WHERE w.id = ANY (ids) AND w.reason || '' = 'held'
        ORDER BY w.id
        FOR UPDATE
    ), gone AS (
        DELETE FROM {schema}.job_waiting AS w
        WHERE w.id = ANY (ARRAY(SELECT m.id FROM mine AS m))
        RETURNING w.id, w.created_at, w.attempt, w.max_attempts, w.reprocess_count, w.crash_count, w.payload_bytes, w.priority, w.queue,
                  w.kind, w.unique_scope, w.unique_key, w.fingerprint, w.payload, w.raw, w.errors, w.props,
                  (SELECT h.run_at FROM {schema}.job_held AS h WHERE h.job_id = w.id LIMIT 1) AS run_at,
                  (SELECT h.gated FROM {schema}.job_held AS h WHERE h.job_id = w.id LIMIT 1) AS gated
    ), forgotten AS (
        DELETE FROM {schema}.job_held AS h
        WHERE h.job_id = ANY (ARRAY(SELECT m.id FROM mine AS m))
    ), queued AS (
        INSERT INTO {schema}.job_queue
            (id, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes, priority, queue,
             kind, unique_scope, unique_key, fingerprint, payload, raw, errors, props, lane)
        SELECT g.id, g.created_at, g.attempt, g.max_attempts, g.reprocess_count, g.crash_count, g.payload_bytes, g.priority, g.queue,
               g.kind, g.unique_scope, g.unique_key, g.fingerprint, g.payload, g.raw, g.errors, g.props, g.priority
        FROM gone AS g
        WHERE NOT g.gated AND (g.run_at > statement_timestamp()) IS NOT TRUE
        ORDER BY g.id
    ), waiting AS (
        INSERT INTO {schema}.job_waiting
            (id, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes, priority, queue,
             kind, unique_scope, unique_key, fingerprint, payload, raw, errors, props, run_at, reason)
        SELECT g.id, g.created_at, g.attempt, g.max_attempts, g.reprocess_count, g.crash_count, g.payload_bytes, g.priority, g.queue,
               g.kind, g.unique_scope, g.unique_key, g.fingerprint, g.payload, g.raw, g.errors, g.props,
               CASE WHEN g.gated THEN 'infinity' ELSE g.run_at END, CASE WHEN g.gated THEN 'gated' ELSE 'scheduled' END
        FROM gone AS g
        WHERE g.gated OR g.run_at > statement_timestamp()
    ), lined AS (
        INSERT INTO {schema}.job_gated (job_id, gate, key, run_at)
        SELECT g.id, g.props -> 'gates' ->> 0, g.props ->> 'fairness_key', g.run_at
        FROM gone AS g
        WHERE g.gated AND g.props -> 'gates' ->> 0 LIKE 'f%'
        ORDER BY g.id
        RETURNING job_id, gate
    ), looked AS (
        INSERT INTO {schema}.job_gate_look (gate, arrived)
        SELECT n.gate, NULL
        FROM {schema}.job_gated AS n
        WHERE n.job_id = ANY (ARRAY(SELECT g.id FROM gone AS g WHERE g.gated))
        UNION ALL
        SELECT l.gate, l.job_id FROM lined AS l
    )
    SELECT g.id, g.queue, g.priority, g.gated
    FROM gone AS g;
END
$$;
