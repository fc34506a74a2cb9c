package store

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A job that ended goes back among the live ones: out of its table, in the queue
// with all attempts before it, its key, fingerprint and payload as a live job
// has them. Rows are taken in one order, then keys in one order, as everywhere. A
// row whose key a live job holds stays. One that crashed its workers is still a
// suspect. One that has closed its order key is let in at once, at its old place;
// any other that has gates lines up anew, in the order of the ids.
var redrive = `
WITH ended AS MATERIALIZED (
    SELECT d.id, d.created_at, d.max_attempts, d.crash_count, d.priority, d.queue, d.kind,
           d.unique_scope, d.unique_key, d.fingerprint, d.payload, d.raw, d.errors, d.props, {size} AS size, {apart} AS apart
    FROM {schema}.{table} AS d
    WHERE d.id = ANY ($1::text[]::uuid[]) AND d.state <> 'completed'
    ORDER BY d.id
    {lock}
), taken AS (
    INSERT INTO {schema}.job_unique (scope, key, job_id)
    SELECT k.unique_scope, k.unique_key, k.id
    FROM (
        SELECT DISTINCT ON (e.unique_scope COLLATE "C", e.unique_key COLLATE "C") e.unique_scope, e.unique_key, e.id
        FROM ended AS e
        WHERE e.unique_key IS NOT NULL
        ORDER BY e.unique_scope COLLATE "C", e.unique_key COLLATE "C", e.id
    ) AS k
    ON CONFLICT (scope, key) DO NOTHING
    RETURNING job_id
), judged AS MATERIALIZED (
    SELECT e.id, e.created_at, e.max_attempts, e.crash_count, e.priority, e.queue, e.kind,
           e.unique_scope, e.unique_key, e.fingerprint, e.payload, e.raw, e.errors, e.props, e.size, e.apart,
           e.unique_key IS NULL OR e.id IN (SELECT t.job_id FROM taken AS t) AS free,
           CASE WHEN e.crash_count > 0 THEN -2 ELSE e.priority END AS lane
    FROM ended AS e
), gone AS (
    DELETE FROM {schema}.{table} AS d
    WHERE d.id = ANY (ARRAY(SELECT j.id FROM judged AS j WHERE j.free))
), fingerprint AS (
    INSERT INTO {schema}.job_fingerprint (fingerprint, job_id)
    SELECT j.fingerprint, j.id
    FROM judged AS j
    WHERE j.free AND j.fingerprint IS NOT NULL
    ON CONFLICT (job_id) DO NOTHING
), {big}lane AS (
    INSERT INTO {schema}.job_lane (queue, priority)
    SELECT CASE WHEN EXISTS (SELECT FROM {schema}.job_bound AS b WHERE b.queue = l.queue) THEN '*' ELSE '' END || l.queue, l.priority
    FROM (SELECT DISTINCT j.queue, j.priority FROM judged AS j WHERE j.free) AS l
    WHERE NOT EXISTS (
        SELECT FROM {schema}.job_lane AS known
        WHERE known.queue IN (l.queue, '*' || l.queue) AND known.priority = l.priority)
), resumed AS (
    UPDATE {schema}.job_gate_hold
    SET blocked_at = NULL
    WHERE ctid = ANY (ARRAY(
        SELECT mine.ctid
        FROM judged AS j
        CROSS JOIN LATERAL (
            SELECT o.ctid
            FROM {schema}.job_gate_hold AS o
            WHERE o.gate = j.props -> 'gates' ->> 0 AND o.slot = 0 AND o.job_id = j.id AND o.blocked_at IS NOT NULL
            LIMIT 1
            FOR UPDATE
        ) AS mine
        WHERE j.free AND j.props ? 'block_dead'
    ))
    RETURNING job_id
), back AS MATERIALIZED (
    SELECT j.id, j.created_at, 0 AS attempt, coalesce($2::integer, j.max_attempts) AS max_attempts, 0 AS reprocess_count,
           least(j.crash_count, 1) AS crash_count, CASE WHEN j.apart THEN j.size ELSE 0 END AS payload_bytes,
           j.priority, j.queue, j.kind, j.unique_scope, j.unique_key, j.fingerprint,
           CASE WHEN NOT j.apart THEN j.payload END AS payload, CASE WHEN NOT j.apart THEN j.raw END AS raw, j.errors,
           (coalesce(j.props, '{}') - 'redrive_conflict') || jsonb_build_object('redrives', coalesce((j.props ->> 'redrives')::integer, 0) + 1) AS props,
           j.lane, j.props ? 'gates' AND j.id <> ALL (ARRAY(SELECT r.job_id FROM resumed AS r)) AS gated
    FROM judged AS j
    WHERE j.free
), queued AS (
    INSERT INTO {schema}.job_queue ({job}, lane)
    SELECT {b.job}, b.lane
    FROM back AS b
    WHERE b.gated IS NOT TRUE
    ORDER BY b.id
), waiting AS (
    INSERT INTO {schema}.job_waiting ({job}, run_at, reason)
    SELECT {b.job}, 'infinity', 'gated'
    FROM back AS b
    WHERE b.gated
), lined AS (
    INSERT INTO {schema}.job_gated (job_id, gate, key, blocks)
    SELECT b.id, g.gate, CASE WHEN g.gate LIKE 'f%' THEN b.props ->> 'fairness_key' END, b.props ? 'block_dead'
    FROM back AS b
    CROSS JOIN LATERAL (SELECT b.props -> 'gates' ->> 0 AS gate) AS g
    WHERE b.gated
    ORDER BY b.id
    RETURNING job_id, gate
), looked AS (
    INSERT INTO {schema}.job_gate_look (gate, arrived)
    SELECT l.gate, CASE WHEN row_number() OVER () = 1 THEN l.job_id END
    FROM lined AS l
)
SELECT j.id, j.unique_scope, j.unique_key, j.queue, j.lane, j.free, j.id = ANY (ARRAY(SELECT b.id FROM back AS b WHERE b.gated))
FROM judged AS j
ORDER BY j.id`

var (
	// A row that somebody else is redriving is left to them.
	redriveDead = Define(in("job_queue_dlq", strings.NewReplacer(
		"{size}", sizeOf("d"), "{apart}", sizeOf("d")+" > 1024", "{lock}", "FOR UPDATE SKIP LOCKED",
		"{big}", `big AS (
    INSERT INTO {schema}.job_payload (id, payload, raw)
    SELECT j.id, j.payload, j.raw
    FROM judged AS j
    WHERE j.free AND j.apart
), `).Replace(redrive)))
	// What ended outside a worker and has not been moved yet still has its payload
	// where a live job has it, with the steps it had made. Who has locked its row
	// may be moving it: so this waits, and looks before redriveDead does.
	redriveFinished = Define(in("job_finished", strings.NewReplacer(
		"{size}", "d.payload_bytes", "{apart}", "d.payload_bytes > 0", "{lock}", "FOR UPDATE",
		"{big}", `afresh AS (
    UPDATE {schema}.job_payload
    SET steps = NULL
    WHERE id = ANY (ARRAY(SELECT j.id FROM judged AS j WHERE j.free AND j.apart)) AND steps IS NOT NULL
), `).Replace(redrive)))
)

// sizeOf is the number of bytes of a row's payload.
func sizeOf(row string) string {
	return strings.ReplaceAll("coalesce(octet_length(x.payload::text), 0) + coalesce(octet_length(x.raw), 0)", "x.", row+".")
}

// Redriven is what became of the jobs of a Redrive.
type Redriven struct {
	IDs       [][16]byte
	Lanes     map[Lane]bool
	Gated     bool // some wait at gates now
	Conflicts []KeyConflict
}

// KeyConflict is a job whose unique key a live job holds.
type KeyConflict struct {
	ID, Holder [16]byte // no holder: it ended meanwhile
	Scope, Key string
}

func (r *Redriven) scan(row pgx.Rows) error {
	var id [16]byte
	var scope, key *string
	var l Lane
	var free, gated bool
	if err := row.Scan(&id, &scope, &key, &l.Queue, &l.Priority, &free, &gated); err != nil {
		return err
	}
	if !free {
		r.Conflicts = append(r.Conflicts, KeyConflict{ID: id, Scope: *scope, Key: *key})
		return nil
	}
	r.IDs = append(r.IDs, id)
	if gated {
		r.Gated = true
	} else {
		r.Lanes[l] = true
	}
	return nil
}

// A request to cancel the job's last run, which the reaper has not removed yet, is
// not for its next one.
var forgetCancels = Define(`
DELETE FROM {schema}.job_cancel WHERE job_id = ANY ($1::text[]::uuid[])`)

// Redrive makes those of the dead jobs live again that can be. maxAttempts is
// for all of them; nil leaves each its own.
func (db *DB) Redrive(ctx context.Context, limit time.Duration, ids [][16]byte, maxAttempts *int32) (Redriven, error) {
	r := Redriven{Lanes: map[Lane]bool{}}
	args := []any{uuids(ids), maxAttempts}
	err := db.Tx(ctx, limit,
		Step{Statement: forgetCancels, Args: args[:1]},
		Step{Statement: redriveFinished, Args: args, Scan: r.scan},
		Step{Statement: redriveDead, Args: args, Scan: r.scan})
	if err != nil || len(r.Conflicts) == 0 {
		return r, err
	}
	return r, db.noteConflicts(ctx, limit, r.Conflicts)
}

// The holder is looked up in a statement of its own, which sees it.
var noteConflicts = Define(`
WITH held AS MATERIALIZED (
    SELECT c.id::uuid AS id, u.job_id
    FROM unnest($1::text[], $2::text[], $3::text[]) AS c(id, scope, key)
    CROSS JOIN LATERAL (
        SELECT u.job_id
        FROM {schema}.job_unique AS u
        WHERE u.scope = c.scope AND u.key = c.key
        LIMIT 1
    ) AS u
), locked AS MATERIALIZED (
    SELECT d.id
    FROM {schema}.job_queue_dlq AS d
    WHERE d.id = ANY ($1::text[]::uuid[])
    ORDER BY d.id
    FOR UPDATE SKIP LOCKED
), noted AS (
    UPDATE {schema}.job_queue_dlq AS d
    SET props = coalesce(d.props, '{}') || jsonb_build_object('redrive_conflict', jsonb_build_object(
        'holder', (SELECT h.job_id FROM held AS h WHERE h.id = d.id), 'at', clock_timestamp()))
    WHERE d.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
)
SELECT h.id, h.job_id FROM held AS h`)

// noteConflicts fills in who holds the keys, and notes it on the dead jobs.
func (db *DB) noteConflicts(ctx context.Context, limit time.Duration, conflicts []KeyConflict) error {
	var ids [][16]byte
	var scopes, keys []string
	at := map[[16]byte]int{}
	for i, c := range conflicts {
		ids, scopes, keys, at[c.ID] = append(ids, c.ID), append(scopes, c.Scope), append(keys, c.Key), i
	}
	return db.Tx(ctx, limit, Step{Statement: noteConflicts, Args: []any{uuids(ids), scopes, keys}, Scan: func(row pgx.Rows) error {
		var id, holder [16]byte
		if err := row.Scan(&id, &holder); err != nil {
			return err
		}
		conflicts[at[id]].Holder = holder
		return nil
	}})
}

// A replay is a copy: what the archive says of the job stays true.
var replayable = Define(`
SELECT a.id, a.queue, a.kind, a.priority, a.max_attempts, a.unique_scope, a.unique_key, a.fingerprint,
       a.payload::text, a.raw, a.props
FROM {schema}.job_queue_archive AS a
WHERE a.id = ANY ($1::text[]::uuid[])
ORDER BY a.id`)

// Archived is a completed job, as far as a copy of it needs.
type Archived struct {
	ID          [16]byte
	Queue, Kind string
	Priority    int16
	MaxAttempts int32
	UniqueScope *string
	UniqueKey   *string
	Fingerprint *string
	Payload     *string
	Raw         []byte
	Props       []byte
}

// Replayable returns those of the jobs that are in the archive.
func (db *DB) Replayable(ctx context.Context, limit time.Duration, ids [][16]byte) ([]Archived, error) {
	var list []Archived
	err := db.Tx(ctx, limit, Step{Statement: replayable, Args: []any{uuids(ids)}, Scan: func(row pgx.Rows) error {
		list = append(list, Archived{})
		a := &list[len(list)-1]
		return row.Scan(&a.ID, &a.Queue, &a.Kind, &a.Priority, &a.MaxAttempts, &a.UniqueScope, &a.UniqueKey, &a.Fingerprint,
			&a.Payload, &a.Raw, &a.Props)
	}})
	return list, err
}

// A purge takes the rows in one order, so that two of them do not wait for each
// other.
var purge = `
WITH locked AS MATERIALIZED (
    SELECT e.id
    FROM {schema}.{table} AS e
    WHERE e.id = ANY ($1::text[]::uuid[])
    ORDER BY e.id
    FOR UPDATE
), gone AS (
    DELETE FROM {schema}.{table} AS e
    WHERE e.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
    RETURNING e.id
){payload}
SELECT count(*) FROM gone`

var (
	purgeFinished = Define(in("job_finished", strings.ReplaceAll(purge, "{payload}", `, payload AS (
    DELETE FROM {schema}.job_payload
    WHERE id = ANY (ARRAY(SELECT g.id FROM gone AS g))
)`)))
	purgeArchive = Define(in("job_queue_archive", strings.ReplaceAll(purge, "{payload}", "")))
	purgeDead    = Define(in("job_queue_dlq", strings.ReplaceAll(purge, "{payload}", "")))
)

var purges = map[string]Statement{
	"job_finished": purgeFinished, "job_queue_archive": purgeArchive, "job_queue_dlq": purgeDead,
}

// Purge deletes those of the jobs that are in the tables of the states, in which
// jobs have ended, and returns how many.
func (db *DB) Purge(ctx context.Context, limit time.Duration, ids [][16]byte, states []string) (total int, err error) {
	var steps []Step
	for _, source := range (&Filter{States: states}).of() {
		s := purges[source.table]
		steps = append(steps, Step{Statement: s, Args: []any{uuids(ids)}, Scan: func(row pgx.Rows) error {
			n := 0
			err := row.Scan(&n)
			total += n
			return err
		}})
	}
	err = db.Tx(ctx, limit, steps...)
	return total, err
}

var clock = Define("SELECT clock_timestamp()")

// Now is the database's time.
func (db *DB) Now(ctx context.Context, limit time.Duration) (now time.Time, err error) {
	err = db.Tx(ctx, limit, Step{Statement: clock, Scan: func(row pgx.Rows) error { return row.Scan(&now) }})
	return now, err
}
