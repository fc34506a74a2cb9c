// Package reaper finds jobs whose worker has died and makes them runnable again,
// or ends them when their attempts are used up or they have taken too many
// workers with them. It also notes live jobs that share a fingerprint.
//
// A worker runs one by itself. It can also run alone; any number may run at
// once. All staleness is judged by the database's clock.
package reaper

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Options configures a Reaper. The zero value works.
type Options struct {
	Schema     string        // default "simplequeue"
	Interval   time.Duration // between sweeps, default 5 s
	MaxCrashes int           // in a row, before a job is bad; default 3
	Logger     *slog.Logger  // default slog.Default()
	// OnSweep is called after each sweep of Run, with its result and its error.
	OnSweep func(Result, error)
}

const (
	batch = 500
	limit = 30 * time.Second
)

// Reaper is safe for concurrent use.
type Reaper struct {
	db   *store.DB
	opts Options
}

// New returns a Reaper on a pool.
func New(pool *pgxpool.Pool, opts Options) (*Reaper, error) {
	if opts.Schema == "" {
		opts.Schema = "simplequeue"
	}
	if opts.Interval == 0 {
		opts.Interval = 5 * time.Second
	}
	if opts.MaxCrashes == 0 {
		opts.MaxCrashes = 3
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Interval < 0 || opts.MaxCrashes < 0 {
		return nil, fmt.Errorf("reaper: Options.Interval = %v, MaxCrashes = %d: must be positive, or 0 for the defaults of 5s and 3",
			opts.Interval, opts.MaxCrashes)
	}
	return &Reaper{db: &store.DB{Schema: store.NewSchema(opts.Schema), Pool: pool}, opts: opts}, nil
}

// Result is what one sweep did.
type Result struct {
	Requeued   int // runnable again
	Failed     int // the crash used the last attempt
	Bad        int // crashed too often in a row
	Cancelled  int // had been asked to stop
	Duplicates int // jobs found to share a fingerprint with an older live one
}

// Reaped is how many abandoned jobs were found.
func (r Result) Reaped() int { return r.Requeued + r.Failed + r.Bad + r.Cancelled }

// Run sweeps until ctx ends and returns its error. Failed sweeps are logged and
// tried again at the next interval.
//
// Leases age only while sweeps can run, and sweeps wait for what heartbeats wait
// for: after a time in which none could run, every lease counts from the first
// sweep that did. Neither an outage of the database nor a lock on its tables thus
// takes a job from a worker that lives.
func (r *Reaper) Run(ctx context.Context) error {
	failing := false
	for {
		result, err := r.sweep(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !failing {
			r.opts.Logger.ErrorContext(ctx, "reaper sweep failed", "err", err)
		}
		failing = err != nil
		if r.opts.OnSweep != nil {
			r.opts.OnSweep(result, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.opts.Interval - r.opts.Interval/10 + rand.N(r.opts.Interval/5+1)):
		}
	}
}

// One process sweeps per interval. A gap of more than $3 milliseconds means that
// nobody could; $2 tells that nobody could beat. Where the server's
// clock has been set back a sweep seems to be still to come: it is made, and
// leases count from it.
var markSweep = store.Define(`
INSERT INTO {schema}.job_sweep AS s (name, swept_at, continuous_since)
VALUES ('reaper', clock_timestamp(), clock_timestamp())
ON CONFLICT (name) DO UPDATE SET
    swept_at = excluded.swept_at,
    continuous_since = CASE WHEN excluded.swept_at - s.swept_at > $3::bigint * interval '1 millisecond' OR $2::boolean
                                 OR greatest(s.swept_at, s.continuous_since) > clock_timestamp()
                            THEN excluded.swept_at ELSE s.continuous_since END
WHERE s.swept_at NOT BETWEEN clock_timestamp() - $1::bigint * interval '0.5 milliseconds'
                     AND clock_timestamp() + $1::bigint * interval '0.5 milliseconds'
RETURNING true`)

func (r *Reaper) sweep(ctx context.Context) (Result, error) {
	began := time.Now()
	if err := r.db.TryBeat(ctx, limit); err != nil {
		return Result{}, err
	}
	waited := time.Since(began) > longWait
	mine := false
	err := r.db.Tx(ctx, limit, store.Step{
		Statement: markSweep, Args: []any{r.opts.Interval.Milliseconds(), waited, r.gap().Milliseconds()},
		Scan: func(pgx.Rows) error { mine = true; return nil },
	})
	if err != nil || !mine {
		return Result{}, err
	}
	result, err := r.Once(ctx)
	if err == nil {
		// A sweep that took long has shown all the while that beats could be
		// written, or it would have failed: its own duration is no gap.
		err = r.impatiently(ctx, store.Step{Statement: endSweep})
	}
	return result, err
}

var endSweep = store.Define(`
UPDATE {schema}.job_sweep AS s SET swept_at = clock_timestamp() WHERE s.name = 'reaper'`)

// longWait is for how long a sweep may wait before that counts as a time in which
// nobody could beat, where it is too short for a gap between sweeps. A busy
// machine must not take that long each time, or nothing would ever be reaped.
const longWait = time.Second

// gap is how long after a sweep the next one is late: half an interval, where
// that leaves enough for the jitter, the round trips and a busy machine. With
// less, each sweep of a short interval would be late and nothing ever reaped.
func (r *Reaper) gap() time.Duration {
	return max(r.opts.Interval+r.opts.Interval/2, leastGap)
}

// leastGap is small beside the leases of all but the shortest heartbeats: what
// is not seen as a gap ages them.
const leastGap = 500 * time.Millisecond

// patience is how long a sweep that has begun waits for a lock. A beat itself is
// given a quarter of the heartbeat interval.
func (r *Reaper) patience() time.Duration {
	return min(max(r.opts.Interval/4, 100*time.Millisecond), time.Second)
}

// impatiently makes a step that fails where it would have to wait for a lock:
// once a sweep has begun, a wait that went unseen would age leases.
func (r *Reaper) impatiently(ctx context.Context, step store.Step) error {
	return r.db.TxImpatiently(ctx, limit, r.patience(), step)
}

// Once makes one sweep now. It judges leases as they stand: call it only where
// workers have been able to reach the database for the length of a lease. It
// fails where somebody has locked the tables that heartbeats need.
func (r *Reaper) Once(ctx context.Context) (Result, error) {
	var total Result
	for {
		found, n, err := r.reap(ctx)
		if err != nil {
			return total, err
		}
		total.Requeued += found.Requeued
		total.Failed += found.Failed
		total.Bad += found.Bad
		total.Cancelled += found.Cancelled
		if n < batch {
			break
		}
	}
	if total.Reaped() > 0 {
		r.opts.Logger.WarnContext(ctx, "jobs of dead workers found",
			"requeued", total.Requeued, "failed", total.Failed, "bad_job", total.Bad, "cancelled", total.Cancelled)
	}
	if err := r.impatiently(ctx, store.Step{Statement: forgetLeases}); err != nil {
		return total, err
	}
	if err := r.endRequests(ctx); err != nil {
		return total, err
	}
	var err error
	total.Duplicates, err = r.markDuplicates(ctx)
	return total, err
}

// past is a time, unless it is far ahead: then it is from before the server's
// clock was set back, and says nothing. The sweeps notice that, and leases count
// from the first one after it, unless it was by less than passes between sweeps,
// whose interval is in a parameter.
func past(column, interval string) string {
	return `CASE WHEN ` + column + ` < clock_timestamp() + interval '1 minute' + ` + interval + `::bigint * interval '2 milliseconds' THEN ` + column + ` END`
}

var lockStale = store.Define(`
SELECT r.claim_id, r.claim_nonce
FROM {schema}.job_running AS r
LEFT JOIN LATERAL (
    SELECT l.beat_at
    FROM {schema}.job_lease AS l
    WHERE l.claim_id = r.claim_id AND l.claim_nonce = r.claim_nonce
    LIMIT 1
) AS l ON true
WHERE greatest(` + past("r.claimed_at", "$2") + `, ` + past("l.beat_at", "$2") + `, (SELECT s.continuous_since FROM {schema}.job_sweep AS s WHERE s.name = 'reaper'))
      + r.lease_ms * interval '1 millisecond' < clock_timestamp()
ORDER BY r.claim_id
LIMIT $1::integer
FOR UPDATE OF r SKIP LOCKED`)

// The rows are locked, so their owners can settle no more; a beat that came
// before the lock is seen by this statement's snapshot and saves its job.
var moveStale = store.Define(`
WITH moved AS (
    DELETE FROM {schema}.job_running AS r
    WHERE r.claim_id = ANY ($1::bigint[])
      AND r.claim_nonce = ($2::bigint[])[width_bucket(r.claim_id, $1::bigint[])]
      AND NOT EXISTS (
          SELECT FROM {schema}.job_lease AS l
          WHERE l.claim_id = r.claim_id AND l.claim_nonce = r.claim_nonce
            AND ` + past("l.beat_at", "$4") + ` + r.lease_ms * interval '1 millisecond' >= clock_timestamp())
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id, r.seq
), judged AS MATERIALIZED (
    SELECT m.id, m.created_at, m.attempt, m.max_attempts, m.reprocess_count, m.crash_count + 1 AS crash_count, m.payload_bytes,
           m.priority, m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, m.payload, m.raw, m.props,
           m.claimed_at, m.worker_id, m.seq, c.reason AS cancel_reason,
           CASE WHEN c.claim_id IS NOT NULL THEN 'cancelled'
                WHEN m.crash_count + 1 >= $3::integer THEN 'bad_job'
                WHEN m.attempt >= m.max_attempts THEN 'failed' END AS state,
           {schema}.append_error(m.errors, m.attempt, 'worker_lost', 'worker lost: no heartbeat of its claim', NULL) AS errors
    FROM moved AS m
    ` + store.CancelRequested("true") + `
), queued AS (
    INSERT INTO {schema}.job_queue ({job}, seq, lane)
    SELECT {j.job}, j.seq, -2
    FROM judged AS j
    WHERE j.state IS NULL
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, started_at, worker_id, state, reason)
    SELECT {j.job}, j.claimed_at, j.worker_id, j.state,
           CASE j.state WHEN 'cancelled' THEN coalesce(nullif(j.cancel_reason, ''), 'cancelled while running')
                        WHEN 'bad_job' THEN 'crashed ' || j.crash_count || ' times in a row'
                        ELSE 'worker lost' END
    FROM judged AS j
    WHERE j.state IS NOT NULL
), ` + store.Release("judged", "h.state IS NOT NULL") + `, ` +
	store.ReleaseGates("judged", "h.state IS NOT NULL", "h.state <> 'cancelled'") + `
SELECT coalesce(j.state, '') FROM judged AS j`)

// reap moves one batch and returns how many stale rows it locked. From its first
// statement to its end nobody can lock the tables against beats.
func (r *Reaper) reap(ctx context.Context) (found Result, locked int, err error) {
	err = r.db.InTx(ctx, limit, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, r.db.SQL(store.LockTimeout), r.patience().Milliseconds()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, r.db.SQL(store.BeatNone.Statement), store.BeatNone.Args...); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, r.db.SQL(store.LockTimeout), limit.Milliseconds()); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, r.db.SQL(lockStale), batch, r.opts.Interval.Milliseconds())
		if err != nil {
			return err
		}
		var ids, nonces []int64
		var id, nonce int64
		if _, err := pgx.ForEachRow(rows, []any{&id, &nonce}, func() error {
			ids, nonces = append(ids, id), append(nonces, nonce)
			return nil
		}); err != nil || len(ids) == 0 {
			return err
		}
		locked = len(ids)
		if rows, err = tx.Query(ctx, r.db.SQL(moveStale), ids, nonces, r.opts.MaxCrashes, r.opts.Interval.Milliseconds()); err != nil {
			return err
		}
		var state string
		_, err = pgx.ForEachRow(rows, []any{&state}, func() error {
			switch state {
			case "":
				found.Requeued++
			case "failed":
				found.Failed++
			case "bad_job":
				found.Bad++
			case "cancelled":
				found.Cancelled++
			}
			return nil
		})
		return err
	})
	return found, locked, err
}

// A beat and the end of its claim may cross; what is left over goes here. A
// subquery with a LIMIT stays a probe for each row; as an anti-join it would be
// planned by statistics, which on job_running are those of any moment.
var (
	forgetLeases = store.Define(`
DELETE FROM {schema}.job_lease AS l
WHERE l.beat_at < clock_timestamp() - interval '10 seconds'
  AND (SELECT true FROM {schema}.job_running AS r
       WHERE r.claim_id = l.claim_id AND r.claim_nonce = l.claim_nonce LIMIT 1) IS NULL`)
	endedRequests = store.Define(`
SELECT c.claim_id, c.claim_nonce, c.job_id, c.reason,
       EXISTS (SELECT FROM {schema}.job_waiting AS w WHERE w.id = c.job_id)
       OR EXISTS (SELECT FROM {schema}.job_queue AS q WHERE q.id = c.job_id)
       OR c.job_id IN (SELECT r.id FROM {schema}.job_running AS r)
FROM {schema}.job_cancel AS c
WHERE (SELECT true FROM {schema}.job_running AS r
       WHERE r.claim_id = c.claim_id AND r.claim_nonce = c.claim_nonce LIMIT 1) IS NULL
ORDER BY c.claim_id
LIMIT $1::integer`)
	forgetRequests = store.Define(`
DELETE FROM {schema}.job_cancel AS c
USING unnest($1::bigint[], $2::bigint[]) AS ended(claim_id, claim_nonce)
WHERE c.claim_id = ended.claim_id AND c.claim_nonce = ended.claim_nonce`)
)

// endRequests removes the requests whose claims have ended. A job that lives on
// was settled by a transaction that had begun before the request could be seen:
// it is cancelled where it is now.
func (r *Reaper) endRequests(ctx context.Context) error {
	for {
		var claims, nonces []int64
		jobs := map[string][][16]byte{} // that live, by reason
		err := r.impatiently(ctx, store.Step{Statement: endedRequests, Args: []any{batch}, Scan: func(row pgx.Rows) error {
			var claim, nonce int64
			var job [16]byte
			var reason string
			var live bool
			err := row.Scan(&claim, &nonce, &job, &reason, &live)
			claims, nonces = append(claims, claim), append(nonces, nonce)
			if live {
				jobs[reason] = append(jobs[reason], job)
			}
			return err
		}})
		if err != nil || len(claims) == 0 {
			return err
		}
		for reason, ids := range jobs {
			if _, err := r.db.Cancel(ctx, time.Second, ids, store.Live{Waiting: true, Pending: true, Running: true}, reason); err != nil {
				return err
			}
		}
		if err := r.impatiently(ctx, store.Step{Statement: forgetRequests, Args: []any{claims, nonces}}); err != nil {
			return err
		}
		if len(claims) < batch {
			return nil
		}
	}
}

// Each live job with a fingerprint is looked at once, so the cost is that of
// the new ones, not of the live ones. Ids of jobs order by their time.
var markDuplicates = store.Define(`
WITH marked AS (
    UPDATE {schema}.job_fingerprint AS f
    SET checked = true,
        duplicate_of = (
            SELECT older.job_id
            FROM {schema}.job_fingerprint AS older
            WHERE older.fingerprint = f.fingerprint AND uuid_send(older.job_id) < uuid_send(f.job_id)
            ORDER BY uuid_send(older.job_id)
            LIMIT 1)
    WHERE f.job_id = ANY (ARRAY(
        SELECT new.job_id
        FROM {schema}.job_fingerprint AS new
        WHERE NOT new.checked AND new.job_id >= $2::uuid
        ORDER BY new.job_id
        LIMIT $1::integer
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING f.job_id, f.duplicate_of
)
SELECT count(*), count(m.duplicate_of), (SELECT last.job_id FROM marked AS last ORDER BY last.job_id DESC LIMIT 1)
FROM marked AS m`)

func (r *Reaper) markDuplicates(ctx context.Context) (found int, err error) {
	var next uuid.UUID // what lies before it has been seen, in this sweep
	for {
		var checked, duplicates int
		var last *uuid.UUID
		err := r.impatiently(ctx, store.Step{Statement: markDuplicates, Args: []any{batch, next}, Scan: func(row pgx.Rows) error {
			return row.Scan(&checked, &duplicates, &last)
		}})
		if err != nil {
			return found, err
		}
		found += duplicates
		if checked < batch {
			return found, nil
		}
		next = *last
	}
}
