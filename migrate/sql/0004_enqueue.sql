-- The insert side: derived unique keys and what an insert does that finds its
-- key taken.

-- A JSON value with its numbers in their shortest form. jsonb itself orders the
-- fields of objects and drops repeated ones, but prints 1.0 and 1 apart.
CREATE FUNCTION {schema}.canonical(value jsonb)
RETURNS jsonb LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF value::text !~ '\.[0-9]*0([^0-9]|$)' THEN
        RETURN value; -- no number ends in a zero after its point
    END IF;
    RETURN CASE jsonb_typeof(value)
        WHEN 'number' THEN to_jsonb(trim_scale((value #>> '{}')::numeric))
        WHEN 'array' THEN (
            SELECT jsonb_agg({schema}.canonical(e.value) ORDER BY e.n)
            FROM jsonb_array_elements(value) WITH ORDINALITY AS e(value, n))
        WHEN 'object' THEN (
            SELECT jsonb_object_agg(e.key, {schema}.canonical(e.value))
            FROM jsonb_each(value) AS e(key, value))
        ELSE value
    END;
END
$$;

-- The unique key of a job whose key is derived: base, a digest of the chosen
-- fields, the window of the time at which the job is to run. Windows of whole
-- days begin at midnight in the zone, weeks on Mondays; shorter ones are counted
-- in UTC, where no hour is repeated.
CREATE FUNCTION {schema}.unique_key(base text, spec jsonb, at timestamptz)
RETURNS text LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key     text    := base;
    origin  date    := '2001-01-01'; -- a Monday
    seconds numeric := (spec ->> 'window')::numeric;
    days    integer;
    start   numeric;
BEGIN
    IF spec ? 'fields' THEN
        key := key || '#' || encode(sha256(convert_to({schema}.canonical(jsonb_build_array(spec -> 'kind', spec -> 'fields'))::text, 'UTF8')), 'hex');
    END IF;
    IF seconds % 86400 = 0 THEN
        days := seconds / 86400;
        start := floor(((at AT TIME ZONE coalesce(spec ->> 'zone', 'UTC'))::date - origin)::numeric / days) * days;
        key := key || '@' || to_char(origin + start::integer, 'YYYY-MM-DD');
    ELSIF seconds IS NOT NULL THEN
        start := floor(extract(epoch FROM (at AT TIME ZONE 'UTC') - origin)::numeric / seconds) * seconds;
        key := key || '@' || to_char(origin + floor(start / 86400)::integer, 'YYYY-MM-DD') || 'T'
            || to_char(time '00:00' + (start % 86400 + 86400) % 86400 * interval '1 second', 'HH24:MI:SS') || 'Z';
    END IF;
    RETURN key;
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
BEGIN
    replaced := false;
    later := false;
    LOOP
        holder := {schema}.unique_holder(scope, key);
        IF holder IS NULL THEN
            RETURN;
        END IF;
        DELETE FROM {schema}.job_waiting AS w
        WHERE w.id = holder AND w.queue = take_over.queue AND w.attempt + w.reprocess_count + w.crash_count = 0
          AND w.reason IN ('scheduled', 'deferred', 'unknown_kind')
        RETURNING w.* INTO waiting;
        IF FOUND AND policy = 'debounce' THEN
            waiting.run_at := greatest(waiting.run_at, least(due, waiting.created_at + most_us * interval '1 microsecond'));
            INSERT INTO {schema}.job_waiting SELECT waiting.*;
            replaced := true;
            later := true;
            RETURN;
        END IF;
        IF FOUND THEN
            old := to_jsonb(waiting);
        ELSIF policy = 'replace' THEN
            DELETE FROM {schema}.job_queue AS q
            WHERE q.id = holder AND q.queue = take_over.queue AND q.attempt + q.reprocess_count + q.crash_count = 0
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
                         AND w.reason IN ('scheduled', 'deferred', 'unknown_kind'))
               OR policy = 'replace' AND EXISTS (
                       SELECT FROM {schema}.job_queue AS q
                       WHERE q.id = holder AND q.queue = take_over.queue AND q.attempt + q.reprocess_count + q.crash_count = 0)
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
    IF later THEN
        waiting := jsonb_populate_record(NULL::{schema}.job_waiting, old);
        waiting.run_at := due;
        waiting.reason := 'scheduled';
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

-- Limits on the live jobs of queues.

-- The queues that have a limit. A bound that is made anew has a new id: what an
-- earlier one has left in job_slot counts no more.
CREATE TABLE {schema}.job_bound (
    queue    text    NOT NULL PRIMARY KEY,
    bound_id bigint  GENERATED ALWAYS AS IDENTITY,
    max_live integer NOT NULL
);

-- A row for each job that a queue with a limit may hold: free, or taken by a live
-- job. An insert takes free ones that nobody has locked, so it never waits for
-- another, and a job gives its own back in the statement that ends it, which
-- nobody else has locked. The newest free ones are taken first: behind them are
-- the dead rows of those taken before.
CREATE TABLE {schema}.job_slot (
    bound_id bigint NOT NULL,
    seq      bigint GENERATED BY DEFAULT AS IDENTITY,
    job_id   uuid
);
CREATE INDEX job_slot_free ON {schema}.job_slot (bound_id, seq) WHERE job_id IS NULL;
CREATE INDEX job_slot_job ON {schema}.job_slot (job_id);
ALTER TABLE {schema}.job_slot SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);

-- Slots that are too many since a limit was lowered, and taken: free slots are
-- removed for these before any is taken. Free and taken slots less these are the
-- limit, at every commit.
CREATE TABLE {schema}.job_slot_owed (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bound_id bigint NOT NULL
);
CREATE INDEX job_slot_owed_bound ON {schema}.job_slot_owed (bound_id);

-- The lanes of a queue with a limit have a '*' before the queue's name, which no
-- name holds. So an insert that does not know of the limit does not find its
-- lane, as it looks for it anyway, and comes here, while all others pay nothing.
--
-- Whether there is a bound is asked by trying to make one, which sees what was
-- committed after the snapshot of a REPEATABLE READ transaction.
CREATE FUNCTION {schema}.guard_lane()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF starts_with(NEW.queue, '*') THEN
        RETURN NEW;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('{schema_name}.lane.' || NEW.queue, 0));
    BEGIN
        INSERT INTO {schema}.job_bound (queue, max_live) VALUES (NEW.queue, 0);
        RAISE EXCEPTION USING ERRCODE = 'SQ001';
    EXCEPTION
        WHEN SQLSTATE 'SQ001' THEN
            RETURN NEW;
        WHEN unique_violation THEN
            RAISE EXCEPTION 'simplequeue: queue "%" has a limit that this insert did not know of: roll back and insert again', NEW.queue
                USING ERRCODE = 'serialization_failure';
    END;
END
$$;
CREATE TRIGGER guard BEFORE INSERT ON {schema}.job_lane FOR EACH ROW EXECUTE FUNCTION {schema}.guard_lane();

-- Limits the live jobs of a queue; null for no limit. Jobs that were inserted
-- while there was none, or by transactions that had begun then, do not count.
-- It fails with lock_not_available, at once, while a transaction is open that has
-- been the first to insert into a lane of the queue.
CREATE FUNCTION {schema}.set_queue_limit(queue text, max_live integer)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name  text := queue;
    bound {schema}.job_bound;
    more  integer;
    gone  bigint;
BEGIN
    IF name IS NULL OR name = '' OR octet_length(name) > 128 OR name ~ '[*\u0001-\u001f\u007f-\u009f]' THEN
        RAISE EXCEPTION 'simplequeue.set_queue_limit: queue "%" is no name of a queue: 1 to 128 bytes without control characters and without "*"', name
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF max_live NOT BETWEEN 1 AND 1000000 THEN
        RAISE EXCEPTION 'simplequeue.set_queue_limit: max_live "%" must be 1 to 1000000, or null for no limit', max_live
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'simplequeue.set_queue_limit: needs READ COMMITTED, not %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('{schema_name}.lane.' || name, 0)) THEN
        RAISE EXCEPTION 'simplequeue.set_queue_limit: a transaction is open that was the first to insert into queue "%": try again', name
            USING ERRCODE = 'lock_not_available';
    END IF;
    SELECT b.* INTO bound FROM {schema}.job_bound AS b WHERE b.queue = name FOR UPDATE;
    more := coalesce(set_queue_limit.max_live, 0) - coalesce(bound.max_live, 0);
    IF bound.bound_id IS NULL AND max_live IS NOT NULL THEN
        INSERT INTO {schema}.job_bound (queue, max_live) VALUES (name, set_queue_limit.max_live) RETURNING bound_id INTO bound.bound_id;
        UPDATE {schema}.job_lane AS l SET queue = '*' || name WHERE l.queue = name;
    ELSIF max_live IS NOT NULL THEN
        UPDATE {schema}.job_bound AS b SET max_live = set_queue_limit.max_live WHERE b.bound_id = bound.bound_id;
    ELSIF bound.bound_id IS NOT NULL THEN
        DELETE FROM {schema}.job_bound AS b WHERE b.bound_id = bound.bound_id;
        UPDATE {schema}.job_lane AS l SET queue = name WHERE l.queue = '*' || name;
    END IF;
    IF max_live IS NOT NULL AND more > 0 THEN
        DELETE FROM {schema}.job_slot_owed AS o
        WHERE o.id = ANY (ARRAY(
            SELECT f.id FROM {schema}.job_slot_owed AS f WHERE f.bound_id = bound.bound_id LIMIT more FOR UPDATE SKIP LOCKED));
        GET DIAGNOSTICS gone = ROW_COUNT;
        INSERT INTO {schema}.job_slot (bound_id) SELECT bound.bound_id FROM generate_series(1, more - gone);
    ELSIF max_live IS NOT NULL AND more < 0 THEN
        DELETE FROM {schema}.job_slot AS s
        WHERE s.ctid = ANY (ARRAY(
            SELECT f.ctid FROM {schema}.job_slot AS f
            WHERE f.bound_id = bound.bound_id AND f.job_id IS NULL LIMIT -more FOR UPDATE SKIP LOCKED));
        GET DIAGNOSTICS gone = ROW_COUNT;
        INSERT INTO {schema}.job_slot_owed (bound_id) SELECT bound.bound_id FROM generate_series(1, -more - gone);
    END IF;
    -- What bounds that are gone have left, as far as nobody is at it.
    DELETE FROM {schema}.job_slot AS s
    WHERE s.ctid = ANY (ARRAY(
        SELECT f.ctid FROM {schema}.job_slot AS f
        WHERE NOT EXISTS (SELECT FROM {schema}.job_bound AS b WHERE b.bound_id = f.bound_id) FOR UPDATE SKIP LOCKED));
    DELETE FROM {schema}.job_slot_owed AS o
    WHERE o.id = ANY (ARRAY(
        SELECT f.id FROM {schema}.job_slot_owed AS f
        WHERE NOT EXISTS (SELECT FROM {schema}.job_bound AS b WHERE b.bound_id = f.bound_id) FOR UPDATE SKIP LOCKED));
END
$$;

-- Takes a slot of its queue for each job. It returns the queues that have no
-- limit (any more), or the first that is full, with its limit, and has then
-- taken and locked nothing.
CREATE FUNCTION {schema}.take_slots(queues text[], ids uuid[])
RETURNS TABLE (queue text, max_live integer) LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    jobs  uuid[];
    bound bigint;
    owed  bigint[];
    free  tid[];
    most  integer;
    name  text;
    unbounded text[] := '{}';
BEGIN
    FOR name, jobs IN SELECT j.queue, array_agg(j.id) FROM unnest(queues, ids) AS j(queue, id) GROUP BY j.queue ORDER BY j.queue LOOP
        SELECT b.bound_id, b.max_live INTO bound, most FROM {schema}.job_bound AS b WHERE b.queue = name;
        IF bound IS NULL THEN
            unbounded := unbounded || name;
            CONTINUE;
        END IF;
        owed := ARRAY(SELECT o.id FROM {schema}.job_slot_owed AS o WHERE o.bound_id = bound FOR UPDATE SKIP LOCKED);
        free := ARRAY(
            SELECT s.ctid FROM {schema}.job_slot AS s
            WHERE s.bound_id = bound AND s.job_id IS NULL
            ORDER BY s.seq DESC LIMIT cardinality(jobs) + cardinality(owed) FOR UPDATE SKIP LOCKED);
        IF cardinality(free) < cardinality(jobs) + cardinality(owed) THEN
            RAISE EXCEPTION USING ERRCODE = 'SQ001';
        END IF;
        DELETE FROM {schema}.job_slot_owed AS o WHERE o.id = ANY (owed);
        DELETE FROM {schema}.job_slot AS s WHERE s.ctid = ANY (free);
        INSERT INTO {schema}.job_slot (bound_id, job_id) SELECT bound, j.id FROM unnest(jobs) AS j(id);
    END LOOP;
    RETURN QUERY SELECT u.name, NULL::integer FROM unnest(unbounded) AS u(name);
EXCEPTION WHEN SQLSTATE 'SQ001' THEN
    RETURN QUERY SELECT name, most;
END
$$;

-- Inserts from SQL.

-- A uuid of version 7: the time in milliseconds, then random bits.
CREATE FUNCTION {schema}.uuid_v7()
RETURNS uuid LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

-- How long to keep a finished job, in seconds, -1 for ever, -2 not at all.
CREATE FUNCTION {schema}.keep_seconds(keep text)
RETURNS bigint LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE keep WHEN 'forever' THEN -1 WHEN 'nothing' THEN -2 ELSE ceil(extract(epoch FROM keep::interval))::bigint END
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
    wake              boolean     DEFAULT true)
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
    keyed := unique_key <> '' OR coalesce(cardinality(unique_fields), 0) > 0;
    SELECT v.field, v.wrong, v.reason INTO field, wrong, reason FROM (VALUES
        (coalesce(queue, '') = '', 'queue', queue, 'must not be empty: name the queue'),
        (octet_length(queue) > 128, 'queue', queue, 'has ' || octet_length(queue) || ' bytes, at most 128 are allowed'),
        (queue ~ '[\u0001-\u001f\u007f-\u009f]', 'queue', queue, 'holds a control character'),
        (strpos(queue, '*') > 0, 'queue', queue, 'holds ''*'', which only a handler''s prefix may'),
        (octet_length(kind) > 128, 'kind', kind, 'has ' || octet_length(kind) || ' bytes, at most 128 are allowed'),
        (octet_length(unique_key) > 512, 'unique_key', unique_key, 'has ' || octet_length(unique_key) || ' bytes, at most 512 are allowed'),
        (octet_length(fingerprint) > 512, 'fingerprint', fingerprint, 'has ' || octet_length(fingerprint) || ' bytes, at most 512 are allowed'),
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
        (NOT keyed AND (unique_window IS NOT NULL OR on_conflict <> 'skip'), 'unique_window or on_conflict', coalesce(unique_window::text, on_conflict), 'needs a unique_key or unique_fields'),
        (octet_length(unique_key) > 426 AND (unique_fields IS NOT NULL OR unique_window IS NOT NULL), 'unique_key', unique_key,
            'has ' || octet_length(unique_key) || ' bytes, at most 426 are allowed beside unique_fields or unique_window'),
        (cardinality(unique_fields) > 0 AND payload IS NULL, 'unique_fields', unique_fields::text, 'needs a payload: raw has no fields'),
        (EXISTS (SELECT FROM unnest(unique_fields) AS f(path) WHERE f.path IS NULL OR f.path <> '.' AND f.path ~ '(^$|^\.|\.$|\.\.)'),
            'unique_fields', unique_fields::text, 'has an empty part: write it like "user.id"'),
        (jsonb_typeof(metadata) <> 'object' OR jsonb_path_exists(metadata, 'strict $.* ? (@.type() <> "string")', silent => true), 'metadata', metadata::text, 'must be an object of strings'),
        (jsonb_typeof(trace_context) <> 'object' OR jsonb_path_exists(trace_context, 'strict $.* ? (@.type() <> "string")', silent => true), 'trace_context', trace_context::text, 'must be an object of strings'),
        (timeout <> 'none' AND CASE WHEN timeout <> 'none' THEN timeout::interval END <= interval '0', 'timeout', timeout, 'must be positive, or none'),
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
        IF later THEN
            INSERT INTO {schema}.job_waiting
                (id, run_at, reason, queue, kind, priority, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
            VALUES (enqueue.id, due, 'scheduled', enqueue.queue, enqueue.kind, enqueue.priority, enqueue.max_attempts, enqueue.fingerprint, scope, enqueue.unique_key,
                    bytes, enqueue.payload, enqueue.raw, props);
        ELSE
            INSERT INTO {schema}.job_queue
                (id, queue, kind, priority, lane, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
            VALUES (enqueue.id, enqueue.queue, enqueue.kind, enqueue.priority, enqueue.priority, enqueue.max_attempts, enqueue.fingerprint, scope, enqueue.unique_key,
                    bytes, enqueue.payload, enqueue.raw, props);
        END IF;
    END IF;
    IF wake AND NOT later AND (replaced OR NOT duplicate) THEN
        -- The same for each job of a transaction and lane, so PostgreSQL sends it once.
        PERFORM pg_notify('simplequeue_' || left(encode(sha256(convert_to('{schema_name}', 'UTF8')), 'hex'), 16), priority || ':' || queue);
    END IF;
    RETURN NEXT;
END
$$;
