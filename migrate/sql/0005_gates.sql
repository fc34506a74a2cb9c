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
    LOOP
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
        -- One that was being changed has a new row, which this saw too late.
        EXIT WHEN NOT EXISTS (SELECT FROM {schema}.job_waiting AS w WHERE w.id = ANY (ids) AND w.reason || '' = 'held');
    END LOOP;
END
$$;

-- Puts what an insert says into the job that holds its key, if that is in the
-- same queue and has never started: all of it ('replace'), or the time to run,
-- where that is later ('debounce', of a job that waits). The job keeps its id
-- and the time of its insert, from which most_us bounds the time to run. Rows are
-- not updated: the job leaves its table and enters one anew, with every column
-- that a later version may have given it.
--
-- holder is null where the key has become free: the caller inserts again.
--
-- A holder that stays at its gates keeps its place; one whose gates are others
-- lines up there, at the end. A held one stays held.
CREATE FUNCTION {schema}.take_over(
    policy text, scope text, key text, queue text, kind text, priority smallint, max_attempts integer, fingerprint text,
    payload_bytes integer, payload jsonb, raw bytea, props jsonb, run_at timestamptz, delay_us bigint, most_us bigint,
    OUT holder uuid, OUT replaced boolean, OUT later boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now     timestamptz := clock_timestamp();
    due     timestamptz := coalesce(run_at, now + delay_us * interval '1 microsecond');
    waiting {schema}.job_waiting;
    queued  {schema}.job_queue;
    old     jsonb;
    held    boolean;
    open    boolean;
    reasons CONSTANT text[] := ARRAY['scheduled', 'deferred', 'unknown_kind', 'gated', 'held'];
    runs_at timestamptz;
    stays   text; -- gated or held
    line    text    := props -> 'gates' ->> 0;
    member  text    := CASE WHEN line LIKE 'f%' THEN props ->> 'fairness_key' END;
    closes  boolean := coalesce(line LIKE 'o%' AND props ? 'block_dead', false);
BEGIN
    replaced := false;
    later := false;
    LOOP
        holder := {schema}.unique_holder(scope, key);
        IF holder IS NULL THEN
            RETURN;
        END IF;
        -- One that was given back in the middle counts no attempt, but has started.
        IF EXISTS (SELECT FROM {schema}.job_payload AS p WHERE p.id = holder AND p.steps IS NOT NULL) THEN
            RETURN;
        END IF;
        DELETE FROM {schema}.job_waiting AS w
        WHERE w.id = holder AND w.queue = take_over.queue AND w.attempt + w.reprocess_count + w.crash_count = 0
          AND w.reason = ANY (reasons)
        RETURNING w.* INTO waiting;
        IF FOUND AND policy = 'debounce' THEN
            due := least(due, waiting.created_at + most_us * interval '1 microsecond');
            IF waiting.reason NOT IN ('gated', 'held') THEN
                IF waiting.run_at > now AND isfinite(waiting.run_at) THEN -- not due, nor parked
                    waiting.run_at := greatest(waiting.run_at, due);
                    replaced := true;
                END IF;
            ELSE
                runs_at := CASE waiting.reason
                    WHEN 'held' THEN (SELECT h.run_at FROM {schema}.job_held AS h WHERE h.job_id = holder)
                    ELSE (SELECT n.run_at FROM {schema}.job_gated AS n WHERE n.job_id = holder) END;
                IF runs_at > now THEN
                    UPDATE {schema}.job_held AS h SET run_at = greatest(runs_at, due) WHERE h.job_id = holder;
                    UPDATE {schema}.job_gated AS n SET run_at = greatest(runs_at, due) WHERE n.job_id = holder;
                    replaced := true;
                END IF;
            END IF;
            INSERT INTO {schema}.job_waiting SELECT waiting.*;
            later := true;
            RETURN;
        END IF;
        IF FOUND THEN
            old := to_jsonb(waiting);
        ELSIF policy = 'replace' THEN
            DELETE FROM {schema}.job_queue AS q
            WHERE q.id = holder AND q.queue = take_over.queue AND q.lane >= 0 AND q.attempt + q.reprocess_count + q.crash_count = 0
            RETURNING q.* INTO queued;
            IF FOUND THEN
                old := to_jsonb(queued);
            END IF;
        END IF;
        EXIT WHEN old IS NOT NULL;
        -- It has started, unless it was on its way from one table to the other.
        SELECT {schema}.unique_holder(scope, key) = holder,
               EXISTS (SELECT FROM {schema}.job_waiting AS w
                       WHERE w.id = holder AND w.queue = take_over.queue AND w.attempt + w.reprocess_count + w.crash_count = 0
                         AND w.reason = ANY (reasons))
               OR policy = 'replace' AND EXISTS (
                       SELECT FROM {schema}.job_queue AS q
                       WHERE q.id = holder AND q.queue = take_over.queue AND q.lane >= 0 AND q.attempt + q.reprocess_count + q.crash_count = 0)
        INTO held, open;
        IF held AND NOT open THEN
            RETURN;
        END IF;
    END LOOP;

    replaced := true;
    due := least(due, (old ->> 'created_at')::timestamptz + most_us * interval '1 microsecond');
    later := coalesce(due > now, false);
    IF old -> 'props' ? 'bounded' THEN
        props := coalesce(props, '{}') || '{"bounded": true}'; -- it keeps its place
    END IF;
    IF old -> 'props' ? 'awaited' THEN
        props := coalesce(props, '{}') || '{"awaited": true}'; -- who waits for it waits on
    END IF;
    DELETE FROM {schema}.job_fingerprint AS f WHERE f.job_id = holder AND old ->> 'fingerprint' IS NOT NULL;
    IF fingerprint IS NOT NULL THEN
        INSERT INTO {schema}.job_fingerprint (fingerprint, job_id) VALUES (take_over.fingerprint, holder);
    END IF;
    DELETE FROM {schema}.job_payload AS p WHERE p.id = holder AND (old ->> 'payload_bytes')::integer > 0;
    IF payload_bytes > 0 THEN
        INSERT INTO {schema}.job_payload (id, payload, raw) VALUES (holder, take_over.payload, take_over.raw);
        payload := NULL;
        raw := NULL;
    END IF;
    old := old || jsonb_build_object(
        'kind', kind, 'priority', priority, 'max_attempts', max_attempts, 'fingerprint', fingerprint, 'payload_bytes', payload_bytes);
    stays := CASE WHEN old ->> 'reason' IN ('gated', 'held') THEN old ->> 'reason' END;
    runs_at := CASE WHEN later THEN due END;
    UPDATE {schema}.job_held AS h SET run_at = runs_at, gated = line IS NOT NULL WHERE h.job_id = holder AND stays = 'held';
    IF old -> 'props' -> 'gates' IS NOT DISTINCT FROM props -> 'gates'
        AND old -> 'props' -> 'fairness_key' IS NOT DISTINCT FROM props -> 'fairness_key' THEN
        UPDATE {schema}.job_gated AS n SET run_at = runs_at, blocks = closes AND n.gate = line WHERE n.job_id = holder AND line IS NOT NULL;
        UPDATE {schema}.job_gate_hold AS o SET blocks = closes WHERE o.gate = line AND o.job_id = holder AND line LIKE 'o%';
    ELSE
        -- It leaves its gates, and lines up at those of the new job.
        WITH inside AS (
            DELETE FROM {schema}.job_gate_hold AS o
            WHERE o.job_id = holder AND o.gate = old -> 'props' -> 'gates' ->> 0 AND o.gate LIKE 'o%'
            RETURNING o.gate, o.place
        ), left_line AS (
            DELETE FROM {schema}.job_gated AS n WHERE n.job_id = holder RETURNING n.gate
        )
        INSERT INTO {schema}.job_gate_look (gate, after)
        SELECT i.gate, i.place FROM inside AS i
        UNION ALL
        SELECT l.gate, NULL FROM left_line AS l;
        stays := CASE WHEN line IS NULL THEN nullif(stays, 'gated') ELSE coalesce(stays, 'gated') END;
        IF line LIKE 'o%' OR line IS NOT NULL AND stays = 'gated' THEN -- a held job's turn comes after its commit
            INSERT INTO {schema}.job_gated (job_id, gate, key, run_at, blocks) VALUES (holder, line, member, runs_at, closes);
            INSERT INTO {schema}.job_gate_look (gate, arrived) VALUES (line, holder);
        END IF;
    END IF;
    IF stays IS NOT NULL THEN
        due := 'infinity';
        later := true;
    END IF;
    IF later THEN
        waiting := jsonb_populate_record(NULL::{schema}.job_waiting, old);
        waiting.run_at := due;
        waiting.reason := coalesce(stays, 'scheduled');
        waiting.payload := take_over.payload;
        waiting.raw := take_over.raw;
        waiting.props := take_over.props;
        INSERT INTO {schema}.job_waiting SELECT waiting.*;
    ELSE
        queued := jsonb_populate_record(NULL::{schema}.job_queue, old);
        queued.seq := nextval(pg_get_serial_sequence(format('%I.job_queue', '{schema_name}'), 'seq'));
        queued.lane := priority;
        queued.payload := take_over.payload;
        queued.raw := take_over.raw;
        queued.props := take_over.props;
        INSERT INTO {schema}.job_queue SELECT queued.*;
    END IF;
END
$$;

-- Inserts a job in the transaction of the caller, by the rules of Insert in Go
-- and with what it leaves behind. duplicate: no job was added, id is the live job
-- that holds the unique key, or job_id was inserted before; replaced: that job
-- was changed as on_conflict says. Arguments that make no sense are refused with
-- 22023, a full queue with 53400, a key that kept changing hands with 40001.
CREATE FUNCTION {schema}.enqueue(
    queue             text,
    payload           jsonb       DEFAULT NULL,
    kind              text        DEFAULT '',
    priority          integer     DEFAULT 0,
    run_at            timestamptz DEFAULT NULL,
    delay             interval    DEFAULT NULL,
    max_attempts      integer     DEFAULT NULL, -- 3
    unique_key        text        DEFAULT '',
    unique_global     boolean     DEFAULT false,
    unique_fields     text[]      DEFAULT NULL,
    unique_window     interval    DEFAULT NULL,
    unique_zone       text        DEFAULT NULL, -- UTC
    on_conflict       text        DEFAULT 'skip', -- or replace, debounce
    unique_max_delay  interval    DEFAULT NULL,
    fingerprint       text        DEFAULT '',
    metadata          jsonb       DEFAULT NULL,
    trace_context     jsonb       DEFAULT NULL,
    timeout           text        DEFAULT NULL, -- an interval, or none
    keep_archive      text        DEFAULT NULL, -- an interval, forever or nothing
    keep_dead_letter  text        DEFAULT NULL,
    raw               bytea       DEFAULT NULL,
    job_id            uuid        DEFAULT NULL,
    wake              boolean     DEFAULT true,
    order_key         text        DEFAULT '',
    block_dead        boolean     DEFAULT false, -- a dead job keeps its order key closed
    fifo              boolean     DEFAULT false, -- the queue is first in, first out
    fairness_key      text        DEFAULT '',
    hold              interval    DEFAULT NULL,
    awaited           boolean     DEFAULT false) -- somebody is going to wait for its end
RETURNS TABLE (id uuid, duplicate boolean, replaced boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    now      timestamptz := clock_timestamp();
    bytes    integer     := coalesce(octet_length(payload::text), 0) + coalesce(octet_length(raw), 0);
    due      timestamptz;
    later    boolean;
    keyed    boolean;
    scope    text;
    spec     jsonb       := '{}';
    picked   jsonb       := '{}';
    path     text;
    part     text;
    value    jsonb;
    props    jsonb       := '{}';
    holder   uuid;
    most     integer;
    lane     text;
    gates    text[]      := '{}';
    waits    text;       -- for what, if not for its time alone
    -- What is refused, and why.
    field    text;
    wrong    text;
    reason   text;
BEGIN
    kind := coalesce(kind, '');
    priority := coalesce(priority, 0);
    max_attempts := coalesce(nullif(max_attempts, 0), 3);
    unique_key := coalesce(unique_key, '');
    unique_global := coalesce(unique_global, false);
    fingerprint := nullif(fingerprint, '');
    on_conflict := coalesce(on_conflict, 'skip');
    order_key := coalesce(order_key, '');
    fairness_key := coalesce(fairness_key, '');
    keyed := unique_key <> '' OR coalesce(cardinality(unique_fields), 0) > 0;
    SELECT v.field, v.wrong, v.reason INTO field, wrong, reason FROM (VALUES
        (coalesce(queue, '') = '', 'queue', queue, 'must not be empty: name the queue'),
        (octet_length(queue) > 128, 'queue', queue, 'has ' || octet_length(queue) || ' bytes, at most 128 are allowed'),
        (queue ~ '[\u0001-\u001f\u007f-\u009f]', 'queue', queue, 'holds a control character'),
        (strpos(queue, '*') > 0, 'queue', queue, 'holds ''*'', which only a handler''s prefix may'),
        (octet_length(kind) > 128, 'kind', kind, 'has ' || octet_length(kind) || ' bytes, at most 128 are allowed'),
        (octet_length(unique_key) > 512, 'unique_key', unique_key, 'has ' || octet_length(unique_key) || ' bytes, at most 512 are allowed'),
        (octet_length(fingerprint) > 512, 'fingerprint', fingerprint, 'has ' || octet_length(fingerprint) || ' bytes, at most 512 are allowed'),
        (octet_length(order_key) > 512, 'order_key', order_key, 'has ' || octet_length(order_key) || ' bytes, at most 512 are allowed'),
        (octet_length(fairness_key) > 512, 'fairness_key', fairness_key, 'has ' || octet_length(fairness_key) || ' bytes, at most 512 are allowed'),
        (hold < interval '0' OR hold > interval '7 days', 'hold', hold::text, 'must be 0 to 7 days'),
        (hold > interval '0' AND on_conflict <> 'skip', 'hold', hold::text, 'and on_conflict are both set: a job that is live is not held anew'),
        (priority NOT BETWEEN 0 AND 9, 'priority', priority::text, 'must be 0 to 9, 0 runs first'),
        (max_attempts NOT BETWEEN 1 AND 1048576, 'max_attempts', max_attempts::text, 'must be 1 to 1048576, or 0 for the default'),
        (delay < interval '0' OR delay > interval '36500 days', 'delay', delay::text, 'must be 0 to 100 years'),
        (delay > interval '0' AND run_at IS NOT NULL, 'delay', delay::text, 'and run_at are both set: set one of them'),
        (run_at < '0001-01-01 UTC' OR run_at >= '10000-01-01 UTC', 'run_at', run_at::text, 'must be in the years 1 to 9999'),
        (unique_global AND NOT keyed, 'unique_global', 'true', 'needs a unique_key or unique_fields'),
        (on_conflict NOT IN ('skip', 'replace', 'debounce'), 'on_conflict', on_conflict, 'must be skip, replace or debounce'),
        (unique_max_delay < interval '0' OR unique_max_delay > interval '36500 days', 'unique_max_delay', unique_max_delay::text, 'must be 0 to 100 years'),
        (unique_max_delay > interval '0' AND on_conflict = 'skip', 'unique_max_delay', unique_max_delay::text, 'needs on_conflict: a job that is left alone is not put off'),
        (on_conflict = 'debounce' AND coalesce(delay, '0') = interval '0' AND run_at IS NULL, 'on_conflict', on_conflict, 'needs a delay or run_at to put the holder off to'),
        (unique_window <= interval '0' OR unique_window > interval '36500 days' OR extract(epoch FROM unique_window) % 1 <> 0 OR date_part('month', unique_window) + date_part('year', unique_window) <> 0,
            'unique_window', unique_window::text, 'must be whole seconds, at most 100 years, and no months'),
        (unique_zone IS NOT NULL AND (unique_window IS NULL OR extract(epoch FROM unique_window) % 86400 <> 0),
            'unique_zone', unique_zone, 'needs a unique_window of whole days: shorter ones are counted in UTC'),
        (unique_zone <> 'UTC' AND strpos(unique_zone, '/') = 0, 'unique_zone', unique_zone, 'names no place: write it like "Europe/Paris"'),
        (NOT keyed AND (unique_window IS NOT NULL OR on_conflict <> 'skip'), 'unique_window or on_conflict', coalesce(unique_window::text, on_conflict), 'needs a unique_key or unique_fields'),
        (octet_length(unique_key) > 426 AND (unique_fields IS NOT NULL OR unique_window IS NOT NULL), 'unique_key', unique_key,
            'has ' || octet_length(unique_key) || ' bytes, at most 426 are allowed beside unique_fields or unique_window'),
        (cardinality(unique_fields) > 0 AND payload IS NULL, 'unique_fields', unique_fields::text, 'needs a payload: raw has no fields'),
        (EXISTS (SELECT FROM unnest(unique_fields) AS f(path) WHERE f.path IS NULL OR f.path <> '.' AND f.path ~ '(^$|^\.|\.$|\.\.)'),
            'unique_fields', unique_fields::text, 'has an empty part: write it like "user.id"'),
        ((SELECT max(octet_length(f.path)) FROM unnest(unique_fields) AS f(path)) > 512, 'unique_fields',
            (SELECT f.path FROM unnest(unique_fields) AS f(path) WHERE octet_length(f.path) > 512 LIMIT 1),
            'has ' || (SELECT octet_length(f.path) FROM unnest(unique_fields) AS f(path) WHERE octet_length(f.path) > 512 LIMIT 1) || ' bytes, at most 512 are allowed'),
        (jsonb_typeof(metadata) <> 'object' OR jsonb_path_exists(metadata, 'strict $.* ? (@.type() <> "string")', silent => true), 'metadata', metadata::text, 'must be an object of strings'),
        (jsonb_typeof(trace_context) <> 'object' OR jsonb_path_exists(trace_context, 'strict $.* ? (@.type() <> "string")', silent => true), 'trace_context', trace_context::text, 'must be an object of strings'),
        (timeout <> 'none' AND CASE WHEN timeout <> 'none' THEN timeout::interval <= interval '0' OR timeout::interval > interval '36500 days' END,
            'timeout', timeout, 'must be positive and at most 100 years, or none'),
        ({schema}.keep_seconds(keep_archive) NOT BETWEEN 1 AND 315360000 AND keep_archive NOT IN ('forever', 'nothing'), 'keep_archive', keep_archive, 'must be positive and at most 10 years, forever or nothing'),
        ({schema}.keep_seconds(keep_dead_letter) NOT BETWEEN 1 AND 315360000 AND keep_dead_letter NOT IN ('forever', 'nothing'), 'keep_dead_letter', keep_dead_letter, 'must be positive and at most 10 years, forever or nothing'),
        (bytes > 1048576, 'payload', bytes || ' bytes', 'is larger than 1048576 bytes: store the data elsewhere and pass a reference')
    ) AS v(refused, field, wrong, reason)
    WHERE v.refused
    LIMIT 1;
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION 'simplequeue.enqueue: % "%" %', field, left(coalesce(wrong, ''), 60), reason USING ERRCODE = 'invalid_parameter_value';
    END IF;

    due := coalesce(run_at, now + nullif(delay, interval '0'));
    later := coalesce(due > now, false);
    props := jsonb_strip_nulls(jsonb_build_object(
        'timeout_ms', CASE WHEN timeout = 'none' THEN -1 ELSE greatest(1, floor(extract(epoch FROM timeout::interval) * 1000)::bigint) END,
        'keep_archive', {schema}.keep_seconds(keep_archive),
        'keep_dlq', {schema}.keep_seconds(keep_dead_letter)));
    IF timeout IS NULL THEN
        props := props - 'timeout_ms';
    END IF;
    IF metadata <> '{}' THEN
        props := props || jsonb_build_object('metadata', metadata);
    END IF;
    IF trace_context <> '{}' THEN
        props := props || jsonb_build_object('trace', trace_context);
    END IF;
    IF fifo OR order_key <> '' THEN
        gates := ARRAY[E'o\t' || queue || E'\t' || CASE WHEN fifo THEN '' ELSE order_key END];
        IF block_dead THEN
            props := props || '{"block_dead": true}';
        END IF;
    END IF;
    IF fairness_key <> '' THEN
        gates := gates || (E'f\t' || queue);
    END IF;
    IF gates <> '{}' THEN
        props := props || jsonb_build_object('gates', to_jsonb(gates));
        waits := 'gated';
    END IF;
    IF order_key <> '' THEN
        props := props || jsonb_build_object('order_key', order_key);
    END IF;
    IF fairness_key <> '' THEN
        props := props || jsonb_build_object('fairness_key', fairness_key);
    END IF;
    IF awaited THEN
        props := props || '{"awaited": true}';
    END IF;
    IF hold > interval '0' THEN
        waits := 'held';
    END IF;
    IF octet_length(props::text) > 65536 THEN
        RAISE EXCEPTION 'simplequeue.enqueue: metadata "% bytes" is larger than 65536 bytes', octet_length(props::text) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT b.max_live INTO most FROM {schema}.job_bound AS b WHERE b.queue = enqueue.queue;
    IF most IS NOT NULL THEN
        props := props || '{"bounded": true}';
    END IF;
    props := nullif(props, '{}');

    IF cardinality(unique_fields) > 0 THEN
        FOREACH path IN ARRAY unique_fields LOOP
            value := payload;
            IF path <> '.' THEN
                FOREACH part IN ARRAY string_to_array(path, '.') LOOP
                    value := CASE WHEN jsonb_typeof(value) = 'object' THEN value -> part END;
                END LOOP;
            END IF;
            picked := picked || jsonb_build_object(path, CASE WHEN value IS NULL THEN '[]' ELSE jsonb_build_array(value) END);
        END LOOP;
        spec := jsonb_build_object('kind', kind, 'fields', picked);
    END IF;
    IF unique_window IS NOT NULL THEN
        spec := spec || jsonb_strip_nulls(jsonb_build_object('window', extract(epoch FROM unique_window)::bigint, 'zone', unique_zone));
    END IF;
    IF spec <> '{}' THEN
        unique_key := {schema}.unique_key(unique_key, spec, coalesce(due, now));
    END IF;
    unique_key := CASE WHEN keyed THEN unique_key END;
    scope := CASE WHEN NOT keyed THEN NULL WHEN unique_global THEN '' ELSE queue END;

    id := coalesce(job_id, {schema}.uuid_v7());
    duplicate := false;
    replaced := false;
    IF job_id IS NOT NULL THEN
        duplicate := EXISTS (SELECT FROM {schema}.jobs_known(ARRAY[job_id]));
        IF NOT duplicate THEN
            INSERT INTO {schema}.job_client_id (id) VALUES (job_id) ON CONFLICT DO NOTHING;
            duplicate := NOT FOUND;
        END IF;
        IF duplicate THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    lane := CASE WHEN most IS NULL THEN queue ELSE '*' || queue END;
    INSERT INTO {schema}.job_lane (queue, priority)
    SELECT lane, enqueue.priority::smallint
    WHERE NOT EXISTS (SELECT FROM {schema}.job_lane AS known WHERE known.queue = lane AND known.priority = enqueue.priority::smallint);

    IF keyed THEN
        FOR round IN 1..4 LOOP
            IF round = 4 THEN
                RAISE EXCEPTION 'simplequeue.enqueue: unique_key "%" is contended: roll back and try again', left(unique_key, 60) USING ERRCODE = 'serialization_failure';
            END IF;
            INSERT INTO {schema}.job_unique (scope, key, job_id) VALUES (scope, unique_key, id) ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
            IF on_conflict = 'skip' THEN
                holder := {schema}.unique_holder(scope, unique_key);
            ELSE
                SELECT t.holder, t.replaced, t.later INTO holder, replaced, later
                FROM {schema}.take_over(on_conflict, scope, unique_key, queue, kind, priority::smallint, max_attempts, fingerprint,
                    CASE WHEN bytes > 1024 THEN bytes ELSE 0 END, payload, raw, props, run_at,
                    (extract(epoch FROM nullif(delay, interval '0')) * 1000000)::bigint,
                    (extract(epoch FROM nullif(unique_max_delay, interval '0')) * 1000000)::bigint) AS t;
            END IF;
            IF holder IS NOT NULL THEN
                DELETE FROM {schema}.job_client_id AS c WHERE c.id = job_id;
                id := holder;
                duplicate := true;
                EXIT;
            END IF;
        END LOOP;
    END IF;

    IF NOT duplicate THEN
        IF most IS NOT NULL THEN
            SELECT t.max_live INTO most FROM {schema}.take_slots(ARRAY[queue], ARRAY[id]) AS t;
            IF most IS NOT NULL THEN
                RAISE EXCEPTION 'simplequeue.enqueue: queue "%" is full: its limit is % live jobs', queue, most USING ERRCODE = 'configuration_limit_exceeded';
            END IF;
        END IF;
        IF bytes > 1024 THEN
            INSERT INTO {schema}.job_payload (id, payload, raw) VALUES (enqueue.id, enqueue.payload, enqueue.raw);
            payload := NULL;
            raw := NULL;
        ELSE
            bytes := 0;
        END IF;
        IF fingerprint IS NOT NULL THEN
            INSERT INTO {schema}.job_fingerprint (fingerprint, job_id) VALUES (enqueue.fingerprint, enqueue.id);
        END IF;
        IF later OR waits IS NOT NULL THEN
            INSERT INTO {schema}.job_waiting
                (id, run_at, reason, queue, kind, priority, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
            VALUES (enqueue.id, CASE WHEN waits IS NULL THEN due ELSE 'infinity' END, coalesce(waits, 'scheduled'), enqueue.queue, enqueue.kind, enqueue.priority, enqueue.max_attempts, enqueue.fingerprint, scope, enqueue.unique_key,
                    bytes, enqueue.payload, enqueue.raw, props);
        ELSE
            INSERT INTO {schema}.job_queue
                (id, queue, kind, priority, lane, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
            VALUES (enqueue.id, enqueue.queue, enqueue.kind, enqueue.priority, enqueue.priority, enqueue.max_attempts, enqueue.fingerprint, scope, enqueue.unique_key,
                    bytes, enqueue.payload, enqueue.raw, props);
        END IF;
    END IF;
    IF NOT duplicate AND (gates[1] LIKE 'o%' OR waits = 'gated') THEN -- a held job's turn comes after its commit
        INSERT INTO {schema}.job_gated (job_id, gate, key, run_at, blocks)
        VALUES (enqueue.id, gates[1], CASE WHEN gates[1] LIKE 'f%' THEN enqueue.fairness_key END, due,
                coalesce((props ->> 'block_dead')::boolean, false));
        INSERT INTO {schema}.job_gate_look (gate, arrived) VALUES (gates[1], enqueue.id);
    END IF;
    IF NOT duplicate AND waits = 'held' THEN
        INSERT INTO {schema}.job_held (job_id, expires_at, run_at, gated) VALUES (enqueue.id, now + enqueue.hold, due, gates <> '{}')
        ON CONFLICT ON CONSTRAINT job_held_pkey DO UPDATE -- left by a job that was cancelled
        SET expires_at = excluded.expires_at, run_at = excluded.run_at, gated = excluded.gated;
    END IF;
    IF wake AND gates <> '{}' AND (replaced OR NOT duplicate) THEN
        PERFORM pg_notify('simplequeue_' || left(encode(sha256(convert_to('{schema_name}', 'UTF8')), 'hex'), 16), '&');
    ELSIF wake AND NOT later AND waits IS NULL AND (replaced OR NOT duplicate) THEN
        -- The same for each job of a transaction and lane, so PostgreSQL sends it once.
        PERFORM pg_notify('simplequeue_' || left(encode(sha256(convert_to('{schema_name}', 'UTF8')), 'hex'), 16), priority || ':' || queue);
    END IF;
    RETURN NEXT;
END
$$;
