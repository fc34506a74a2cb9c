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
