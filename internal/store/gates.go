package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Lined are jobs that have been inserted to wait at a gate, in their order.
type Lined struct {
	IDs      []string
	Gates    []string
	Keys     []*string // of fair gates
	RunAts   []*time.Time
	DelaysUS []*int64
	Blocks   []bool // when such a job ends dead it stays inside
}

// The rows get their places when the transaction commits.
var lineUp = Define(`
WITH line AS (
    INSERT INTO {schema}.job_gated (job_id, gate, key, run_at, blocks)
    SELECT i.id::uuid, i.gate, i.key,
           coalesce(i.run_at, clock_timestamp() + i.delay_us * interval '1 microsecond'), i.blocks
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[], $6::boolean[]) WITH ORDINALITY
         AS i(id, gate, key, run_at, delay_us, blocks, ord)
    ORDER BY i.ord
)
INSERT INTO {schema}.job_gate_look (gate, arrived)
SELECT g.gate, CASE WHEN g.ord = 1 THEN ($1::text[])[1]::uuid END
FROM (
    SELECT i.gate, min(i.ord) AS ord
    FROM unnest($2::text[]) WITH ORDINALITY AS i(gate, ord)
    GROUP BY i.gate
) AS g`)

// LineUp lets jobs of the transaction wait at gates.
func (s *Schema) LineUp(ctx context.Context, q Querier, l *Lined) error {
	return drain(q.Query(ctx, s.SQL(lineUp), l.IDs, l.Gates, l.Keys, l.RunAts, l.DelaysUS, l.Blocks))
}

// One transaction at a time lets jobs in: what it sees is what the one before it
// has left. It is sent as a whole, so no process can stop in the middle of it.
var lockGates = Define(`SELECT pg_advisory_xact_lock(hashtextextended($1::text, 0))`)

// admit looks at the gates that have been asked for and lets in who comes first:
// to an order gate when nobody is inside, to a fair gate up to a window of jobs
// that are runnable and not claimed yet. A fair gate that has some inside is looked
// at again soon, for nobody tells when a job is claimed. A first that is held
// closes its gate; one whose row somebody has locked is looked at again. Whoever
// has another gate to pass lines up there.
//
// The job's row is locked before all else, as whoever ends a job does it. Its
// reason does not change while it lives, so the lock need not look at it.
var admit = Define(`
WITH looks AS (
    DELETE FROM {schema}.job_gate_look
    WHERE ctid = ANY (ARRAY(
        SELECT l.ctid
        FROM {schema}.job_gate_look AS l
        WHERE l.id >= $2::bigint
        ORDER BY l.id
        LIMIT $1::integer
    ))
    RETURNING id, gate, after
), wanted AS MATERIALIZED (
    SELECT l.gate, l.gate LIKE 'f%' AS fair, CASE WHEN count(l.after) = count(*) THEN max(l.after) ELSE 0 END AS after
    FROM looks AS l
    GROUP BY l.gate
), claimed AS MATERIALIZED (
    SELECT o.ctid, o.gate
    FROM wanted AS a
    CROSS JOIN LATERAL (
        SELECT h.ctid, h.gate, (SELECT true FROM {schema}.job_queue AS q WHERE q.id = h.job_id LIMIT 1) AS pending
        FROM {schema}.job_gate_hold AS h
        WHERE h.gate = a.gate
        OFFSET 0
    ) AS o
    WHERE a.fair AND o.pending IS NULL
), left_window AS (
    DELETE FROM {schema}.job_gate_hold
    WHERE ctid = ANY (ARRAY(SELECT c.ctid FROM claimed AS c))
), gates AS MATERIALIZED (
    SELECT a.gate, a.fair, a.after,
           greatest(0, CASE WHEN a.fair THEN $3::bigint ELSE 1 END
               - (SELECT count(*) FROM {schema}.job_gate_hold AS o WHERE o.gate = a.gate)
               + (SELECT count(*) FROM claimed AS c WHERE c.gate = a.gate)) AS room
    FROM wanted AS a
), head AS MATERIALIZED (
    SELECT g.gate, g.fair, first.ctid, first.job_id, first.place, first.blocks,
           CASE WHEN g.fair THEN first.arrived ELSE 0 END AS slot, seen.reason
    FROM gates AS g
    CROSS JOIN LATERAL (
        SELECT n.ctid, n.job_id, n.place, n.blocks, n.arrived
        FROM {schema}.job_gated AS n
        WHERE n.gate = g.gate AND n.place > g.after
        ORDER BY n.place
        LIMIT g.room
    ) AS first
    LEFT JOIN LATERAL (
        SELECT w.reason FROM {schema}.job_waiting AS w WHERE w.id = first.job_id LIMIT 1
    ) AS seen ON true
), picked AS MATERIALIZED (
    SELECT h.gate, h.slot, h.ctid, h.job_id, h.place, h.blocks, h.reason, mine.ctid AS waiting
    FROM head AS h
    LEFT JOIN LATERAL (
        SELECT w.ctid
        FROM {schema}.job_waiting AS w
        WHERE w.id = h.job_id AND h.reason = 'gated'
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS mine ON true
), passed AS (
    DELETE FROM {schema}.job_gated
    WHERE ctid = ANY (ARRAY(SELECT p.ctid FROM picked AS p WHERE p.waiting IS NOT NULL OR p.reason IS NULL))
    RETURNING job_id
), inside AS (
    INSERT INTO {schema}.job_gate_hold (gate, slot, job_id, place, blocks)
    SELECT p.gate, p.slot, p.job_id, p.place, p.blocks
    FROM picked AS p
    WHERE p.waiting IS NOT NULL
), gone AS (
    DELETE FROM {schema}.job_waiting AS w
    WHERE w.ctid = ANY (ARRAY(SELECT p.waiting FROM picked AS p WHERE p.waiting IS NOT NULL))
    RETURNING {w.job}, (SELECT n.run_at FROM {schema}.job_gated AS n WHERE n.job_id = w.id LIMIT 1) AS run_at
), let_in AS MATERIALIZED (
    SELECT {g.job}, g.run_at, next.gate
    FROM gone AS g
    LEFT JOIN LATERAL (
        SELECT g.props -> 'gates' ->> 1 AS gate
        FROM {schema}.job_gated AS n
        WHERE n.job_id = g.id AND n.gate = g.props -> 'gates' ->> 0
        LIMIT 1
    ) AS next ON true
), line AS (
    INSERT INTO {schema}.job_gated (job_id, gate, key, place, run_at)
    SELECT l.id, l.gate, l.props ->> 'fairness_key',
           {schema}.fair_time(l.gate, l.props ->> 'fairness_key') -- as it was before this statement
               + {schema}.fair_step(l.gate, l.props ->> 'fairness_key')
               * row_number() OVER (PARTITION BY l.gate, l.props ->> 'fairness_key' ORDER BY l.id), l.run_at
    FROM let_in AS l
    WHERE l.gate IS NOT NULL AND (SELECT count(*) FROM passed) >= 0 -- the old row has to go first
    RETURNING job_id, gate
), again AS (
    INSERT INTO {schema}.job_gate_look (gate)
    SELECT p.gate
    FROM picked AS p
    WHERE p.waiting IS NULL AND p.reason IS DISTINCT FROM 'held'
    UNION
    SELECT g.gate
    FROM gates AS g
    WHERE g.fair AND g.room < $3::bigint + (SELECT count(*) FROM picked AS p WHERE p.gate = g.gate AND p.waiting IS NOT NULL)
    UNION
    SELECT l.gate
    FROM line AS l
    RETURNING id
), later AS (
    INSERT INTO {schema}.job_waiting ({job}, run_at, reason)
    SELECT {l.job}, CASE WHEN l.gate IS NULL THEN l.run_at ELSE 'infinity' END, CASE WHEN l.gate IS NULL THEN 'scheduled' ELSE 'gated' END
    FROM let_in AS l
    WHERE l.gate IS NOT NULL OR l.run_at > statement_timestamp()
    RETURNING run_at
), queued AS (
    INSERT INTO {schema}.job_queue ({job}, lane)
    SELECT {l.job}, CASE WHEN l.crash_count > 0 THEN -2 ELSE l.priority END
    FROM let_in AS l
    WHERE l.gate IS NULL AND (l.run_at > statement_timestamp()) IS NOT TRUE
    RETURNING queue, lane
), lanes AS (
    SELECT q.queue, q.lane, count(*) AS jobs FROM queued AS q GROUP BY q.queue, q.lane
)
SELECT (SELECT count(*) FROM looks), coalesce((SELECT max(l.id) FROM looks AS l), 0), (SELECT count(*) FROM again),
       coalesce((SELECT sum(l.jobs) FROM lanes AS l), 0)::bigint,
       ARRAY(SELECT l.queue FROM lanes AS l ORDER BY l.queue, l.lane), ARRAY(SELECT l.lane FROM lanes AS l ORDER BY l.queue, l.lane),
       (SELECT (extract(epoch FROM min(l.run_at) - statement_timestamp()) * 1000)::bigint FROM later AS l WHERE l.run_at < 'infinity')`)

// Admission is what Admit has done.
type Admission struct {
	Looks  int   // how many it took
	Last   int64 // the number of the last of them
	Again  int   // gates to look at again soon
	Queued int
	Into   []Lane
	Due    *time.Duration // until the first of those that were let in early is due
}

// Admit takes up to most looks with numbers from from on, and lets in whom it
// can. At most window jobs are inside of a fair gate.
func (db *DB) Admit(ctx context.Context, limit time.Duration, from int64, most, window int) (Admission, error) {
	var a Admission
	before := []Step{{Statement: lockGates, Args: []any{db.name + ".admit"}}}
	if db.Within != nil {
		// Nobody else sees these jobs, and the lock would be held as long as that
		// transaction goes on.
		before = []Step{{Statement: givePlaces}, {Statement: givePlacesAtEnd}}
	}
	err := db.Tx(ctx, limit, append(before,
		Step{Statement: admit, Args: []any{most, from, window}, Scan: func(row pgx.Rows) error {
			var queues []string
			var lanes []int16
			var ms *int64
			if err := row.Scan(&a.Looks, &a.Last, &a.Again, &a.Queued, &queues, &lanes, &ms); err != nil {
				return err
			}
			for i := range queues {
				a.Into = append(a.Into, Lane{queues[i], lanes[i]})
			}
			if ms != nil {
				due := time.Duration(*ms) * time.Millisecond
				a.Due = &due
			}
			return nil
		}})...)
	return a, err
}

// What becomes of the gates that a running job is inside of.
const (
	GateKeep = "keep" // it runs again
	GateEnd  = "end"  // free
	GateDead = "dead" // free, unless the job blocks them
	GateTail = "tail" // free; the job lines up anew
)

// freeGates goes before the settlement of running jobs that are inside of gates,
// after LockClaims. It is a statement of its own so that jobs without gates do
// not pay for it.
var freeGates = Define(`
WITH mine AS MATERIALIZED (
    SELECT r.id, r.claim_id, r.claim_nonce, r.props,
           ` + Of(3, "text") + ` AS fate,
           coalesce('epoch'::timestamptz + ` + Of(4, "bigint") + ` * interval '1 microsecond',
                    clock_timestamp() + ` + Of(5, "bigint") + ` * interval '1 microsecond') AS run_at
    FROM {schema}.job_running_{slot} AS r
    WHERE ` + fenced + `
), ended AS MATERIALIZED (
    SELECT m.id, m.props, m.run_at, CASE WHEN c.claim_id IS NOT NULL THEN 'end' ELSE m.fate END AS fate
    FROM mine AS m
    ` + CancelRequested("true") + `
), ` + ReleaseGates("ended", "h.fate <> 'keep'", "h.fate = 'dead'") + `, line AS (
    INSERT INTO {schema}.job_gated (job_id, gate, run_at, blocks)
    SELECT e.id, g.gate, e.run_at, coalesce((
        SELECT o.blocks FROM {schema}.job_gate_hold AS o WHERE o.gate = g.gate AND o.job_id = e.id LIMIT 1), false)
    FROM ended AS e
    CROSS JOIN LATERAL jsonb_array_elements_text(e.props -> 'gates') AS g(gate)
    WHERE e.fate = 'tail' AND g.gate LIKE 'o%'
    RETURNING job_id, gate
)
INSERT INTO {schema}.job_gate_look (gate, arrived)
SELECT l.gate, l.job_id FROM line AS l`)

// FreeGates reads ClaimIDs, Nonces, Fates, RunAtUS and AfterUS.
func FreeGates(s *Settle) Step {
	return Step{Statement: freeGates, Slot: s.Slot, Args: []any{s.ClaimIDs, s.Nonces, s.Fates, s.RunAtUS, s.AfterUS}}
}

// ReleaseGates are the CTEs that free the order gates of jobs that end, and their
// places in front of gates: of those of the CTE from for which cond, over the
// alias h, is true. A job for which dead is true too stays inside where it blocks.
// Who is inside of a fair gate is the admitter's own business, which the
// transaction of a handler that completes a job must not meet.
func ReleaseGates(from, cond, dead string) string {
	return `gate_held AS MATERIALIZED (
    SELECT held.ctid, held.gate, held.place, held.blocks AND (` + dead + `) AS stays
    FROM ` + from + ` AS h
    CROSS JOIN LATERAL jsonb_array_elements_text(h.props -> 'gates') AS g(gate)
    CROSS JOIN LATERAL (
        SELECT o.ctid, o.gate, o.place, o.blocks
        FROM {schema}.job_gate_hold AS o
        WHERE o.gate = g.gate AND o.slot = 0 AND o.job_id = h.id
        LIMIT 1
    ) AS held
    WHERE g.gate LIKE 'o%' AND ` + cond + `
), gate_freed AS (
    DELETE FROM {schema}.job_gate_hold
    WHERE ctid = ANY (ARRAY(SELECT h.ctid FROM gate_held AS h WHERE NOT h.stays))
), gate_blocked AS (
    UPDATE {schema}.job_gate_hold
    SET blocked_at = coalesce(blocked_at, clock_timestamp())
    WHERE ctid = ANY (ARRAY(SELECT h.ctid FROM gate_held AS h WHERE h.stays))
), gate_left AS (
    DELETE FROM {schema}.job_gated
    WHERE job_id = ANY (ARRAY(
        SELECT h.id
        FROM ` + from + ` AS h
        WHERE h.props -> 'gates' IS NOT NULL AND ` + cond + `
    ))
    RETURNING gate
), gate_looked AS (
    INSERT INTO {schema}.job_gate_look (gate, after)
    SELECT h.gate, h.place FROM gate_held AS h WHERE NOT h.stays
    UNION ALL
    SELECT l.gate, NULL FROM gate_left AS l
)`
}

var blockedGates = Define(`
SELECT o.gate, o.job_id, o.blocked_at
FROM {schema}.job_gate_hold AS o
WHERE o.blocked_at IS NOT NULL AND starts_with(o.gate, $1::text)
ORDER BY o.gate`)

// Blocked is an order gate that a dead job keeps closed.
type Blocked struct {
	Gate  string
	JobID [16]byte
	Since time.Time
}

// BlockedGates returns those whose names begin with prefix.
func (db *DB) BlockedGates(ctx context.Context, limit time.Duration, prefix string) ([]Blocked, error) {
	var list []Blocked
	err := db.Tx(ctx, limit, Step{Statement: blockedGates, Args: []any{prefix}, Scan: func(row pgx.Rows) error {
		var b Blocked
		if err := row.Scan(&b.Gate, &b.JobID, &b.Since); err != nil {
			return err
		}
		list = append(list, b)
		return nil
	}})
	return list, err
}

var unblockGate = Define(`
WITH freed AS (
    DELETE FROM {schema}.job_gate_hold
    WHERE gate = $1::text AND blocked_at IS NOT NULL
    RETURNING gate, place
), look AS (
    INSERT INTO {schema}.job_gate_look (gate, after)
    SELECT f.gate, f.place FROM freed AS f
)
SELECT f.gate FROM freed AS f`)

// UnblockGate frees a gate that a dead job keeps closed, and reports whether one
// did.
func (db *DB) UnblockGate(ctx context.Context, limit time.Duration, gate string) (found bool, err error) {
	err = db.Tx(ctx, limit, Step{Statement: unblockGate, Args: []any{gate}, Scan: func(pgx.Rows) error { found = true; return nil }})
	return found, err
}

// What is before a job at its gate, and until when it is held.
var seeGate = Define(`
SELECT coalesce(n.gate, ''), coalesce(n.run_at, h.run_at), h.expires_at,
       (SELECT count(*) FROM (
            SELECT FROM {schema}.job_gated AS b WHERE b.gate = n.gate AND b.place < n.place LIMIT 100000
        ) AS b) + coalesce(inside.n, 0),
       coalesce(inside.job_id, (
            SELECT b.job_id
            FROM {schema}.job_gated AS b
            WHERE b.gate = n.gate AND b.place < n.place AND n.gate LIKE 'o%'
            ORDER BY b.place
            LIMIT 1)),
       inside.blocked_at
FROM (SELECT $1::text::uuid AS id) AS j
LEFT JOIN {schema}.job_gated AS n ON n.job_id = j.id
LEFT JOIN {schema}.job_held AS h
    ON h.job_id = j.id AND EXISTS (SELECT FROM {schema}.job_waiting AS w WHERE w.id = j.id AND w.reason = 'held')
LEFT JOIN LATERAL (
    SELECT o.job_id, o.blocked_at, 1 AS n
    FROM {schema}.job_gate_hold AS o
    WHERE o.gate = n.gate AND o.slot = 0 AND n.gate LIKE 'o%'
) AS inside ON true`)

// GateSight is what a job waits for at a gate, or until it is committed.
type GateSight struct {
	Gate      string // "" for none
	RunAt     *time.Time
	ExpiresAt *time.Time // of a held job
	Ahead     int64      // how many come first, at most 100,001
	First     *[16]byte  // who of them, at an order gate
	BlockedAt *time.Time // since when that one has been dead
}

// SeeGate looks at the gate at which a job waits.
func (db *DB) SeeGate(ctx context.Context, limit time.Duration, id [16]byte) (s GateSight, err error) {
	err = db.Tx(ctx, limit, Step{Statement: seeGate, Args: []any{uuidText(id)}, Scan: func(row pgx.Rows) error {
		return row.Scan(&s.Gate, &s.RunAt, &s.ExpiresAt, &s.Ahead, &s.First, &s.BlockedAt)
	}})
	return s, err
}

var setWeight = Define(`
INSERT INTO {schema}.job_gate_weight AS w (gate, key, weight)
VALUES ($1::text, $2::text, $3::integer)
ON CONFLICT (gate, key) DO UPDATE SET weight = excluded.weight`)

// SetWeight sets the weight of a key of a fair gate.
func (db *DB) SetWeight(ctx context.Context, limit time.Duration, gate, key string, weight int) error {
	return db.Tx(ctx, limit, Step{Statement: setWeight, Args: []any{gate, key, weight}})
}
