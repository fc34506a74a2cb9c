// Package janitor moves finished jobs to the archive and the dead letter queue,
// and keeps both: it makes partitions ahead of time and drops those whose day
// has passed.
//
// A worker runs one by itself. It can also run alone, beside programs that only
// insert, or in a cron job; any number may run at once.
package janitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Options configures a Janitor. The zero value works.
type Options struct {
	Schema   string          // default "simplequeue"
	Interval time.Duration   // between sweeps, default 1 s
	Keep     Keep            // default 7 and 30 days
	Queues   map[string]Keep // overrides Keep, field by field
	Logger   *slog.Logger    // default slog.Default()
	// OnSweep is called after each sweep of Run, with its error.
	OnSweep func(error)
}

// Keep is how long finished jobs are kept, in seconds, Forever or Nothing. Zero
// means the default.
type Keep struct {
	Archive    int64
	DeadLetter int64
}

// valid reports whether partitions can be made for it.
func (k Keep) valid() bool {
	return k.Archive >= Nothing && k.Archive <= maxKeep && k.DeadLetter >= Nothing && k.DeadLetter <= maxKeep
}

const (
	maxKeep      = 3650 * 86400 // what make_partitions makes
	batch        = 1000
	limit        = 30 * time.Second
	daysAhead    = 7
	housekeeping = time.Minute
	forgetIDs    = 10 * time.Second // at most, of each housekeeping

	// A table of a ring is emptied when it holds at most so many living rows,
	// and has grown to so much.
	rotateLive  = 5000
	rotateBytes = 32 << 20
)

// Janitor is safe for concurrent use.
type Janitor struct {
	db   *store.DB
	opts Options
}

// New returns a Janitor on a pool.
func New(pool *pgxpool.Pool, opts Options) (*Janitor, error) {
	if opts.Schema == "" {
		opts.Schema = "simplequeue"
	}
	if opts.Interval == 0 {
		opts.Interval = time.Second
	}
	if opts.Keep.Archive == 0 {
		opts.Keep.Archive = 7 * 86400
	}
	if opts.Keep.DeadLetter == 0 {
		opts.Keep.DeadLetter = 30 * 86400
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Interval < 0 {
		return nil, fmt.Errorf("janitor: Options.Interval = %v: must be positive, or 0 for the default of 1s", opts.Interval)
	}
	if !opts.Keep.valid() {
		return nil, fmt.Errorf("janitor: Options.Keep = %+v: must be seconds, at most 10 years, Forever or Nothing", opts.Keep)
	}
	for name, k := range opts.Queues {
		if !k.valid() {
			return nil, fmt.Errorf("janitor: Options.Queues[%q] = %+v: must be seconds, at most 10 years, Forever or Nothing", name, k)
		}
	}
	return &Janitor{db: &store.DB{Schema: store.NewSchema(opts.Schema), Pool: pool}, opts: opts}, nil
}

// Result is what one sweep did.
type Result struct {
	Archived     int // moved to the archive
	DeadLettered int // moved to the DLQ
	Expired      int // held jobs that were not committed in time, deleted
	Dropped      int // partitions dropped
	Emptied      int // tables of job_queue and job_running whose space was given back
}

// Run sweeps until ctx ends and returns its error. Failed sweeps are logged and
// tried again at the next interval.
func (j *Janitor) Run(ctx context.Context) error {
	failing := false
	for {
		_, err := j.sweep(ctx, false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !failing {
			j.opts.Logger.ErrorContext(ctx, "janitor sweep failed", "err", err)
		}
		failing = err != nil
		if j.opts.OnSweep != nil {
			j.opts.OnSweep(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(jitter(j.opts.Interval)):
		}
	}
}

// Once makes one full sweep, housekeeping included.
func (j *Janitor) Once(ctx context.Context) (Result, error) { return j.sweep(ctx, true) }

func (j *Janitor) sweep(ctx context.Context, full bool) (r Result, err error) {
	if due, e := j.housekeepingDue(ctx); full || due {
		if r.Dropped, err = j.housekeep(ctx); err != nil {
			// The next sweep, here or elsewhere, tries again.
			_ = j.db.Tx(ctx, limit, store.Step{Statement: unmarkHousekeeping})
		}
	} else {
		err = e
	}
	var moveErr error
	r.Archived, r.DeadLettered, moveErr = j.moveFinished(ctx)
	var expireErr error
	r.Expired, expireErr = ExpireHeld(ctx, j.db)
	limitErr := j.db.Tx(ctx, limit, store.Step{Statement: lowerLimits})
	rotateErr := j.db.Tx(ctx, limit, store.Step{
		Statement: rotate, Args: []any{rotateLive, rotateBytes},
		Scan: func(row pgx.Rows) error {
			var emptied *string
			if err := row.Scan(&emptied); err != nil || emptied == nil {
				return err
			}
			r.Emptied = 1
			return nil
		},
	})
	return r, errors.Join(err, moveErr, expireErr, limitErr, rotateErr)
}

// A time that is still to come is from before the server's clock was set back.
const sweptLately = `s.swept_at BETWEEN clock_timestamp() - $1::bigint * interval '1 millisecond'
                     AND clock_timestamp() + $1::bigint * interval '1 millisecond'`

// The row in job_sweep says when any process last did it; the update itself is
// the lock, so two processes do not do it at once.
var markHousekeeping = store.Define(`
INSERT INTO {schema}.job_sweep AS s (name, swept_at, continuous_since)
VALUES ('janitor', clock_timestamp(), clock_timestamp())
ON CONFLICT (name) DO UPDATE SET swept_at = excluded.swept_at
WHERE NOT (` + sweptLately + `)
RETURNING true`)

var unmarkHousekeeping = store.Define(`
UPDATE {schema}.job_sweep AS s SET swept_at = '-infinity' WHERE s.name = 'janitor'`)

var housekeepingAge = store.Define(`
SELECT true FROM {schema}.job_sweep AS s
WHERE s.name = 'janitor' AND ` + sweptLately)

func (j *Janitor) housekeepingDue(ctx context.Context) (due bool, err error) {
	age := housekeeping.Milliseconds()
	recent := false
	err = j.db.Tx(ctx, limit, store.Step{Statement: housekeepingAge, Args: []any{age}, Scan: func(pgx.Rows) error {
		recent = true
		return nil
	}})
	if err != nil || recent {
		return false, err
	}
	err = j.db.Tx(ctx, limit, store.Step{Statement: markHousekeeping, Args: []any{age}, Scan: func(pgx.Rows) error {
		due = true
		return nil
	}})
	return due, err
}

// Ids that callers chose are remembered for seven days, and for as long as the
// job lives: one whose job is met alive counts as chosen now, so that it is not
// in the way of the others at each housekeeping. job_running has no index by id,
// so it is the side that is read. A lane written twice is written once too often.
var (
	forgetChosenIDs = store.Define(`
WITH old AS MATERIALIZED (
    SELECT c.id
    FROM {schema}.job_client_id AS c
    WHERE c.inserted_at < statement_timestamp() - interval '7 days'
    ORDER BY c.inserted_at
    LIMIT $1::integer
), live AS MATERIALIZED (
    SELECT q.id
    FROM {schema}.job_queue AS q
    WHERE q.id = ANY (ARRAY(SELECT o.id FROM old AS o))
    UNION ALL
    SELECT w.id
    FROM {schema}.job_waiting AS w
    WHERE w.id = ANY (ARRAY(SELECT o.id FROM old AS o))
    UNION ALL
    SELECT r.id
    FROM {schema}.job_running AS r
    CROSS JOIN LATERAL (
        SELECT c.inserted_at
        FROM {schema}.job_client_id AS c
        WHERE c.id = r.id
        LIMIT 1
    ) AS chosen
    WHERE chosen.inserted_at < statement_timestamp() - interval '7 days'
), kept AS (
    UPDATE {schema}.job_client_id AS c
    SET inserted_at = statement_timestamp()
    WHERE c.id = ANY (ARRAY(SELECT l.id FROM live AS l))
), forgotten AS (
    DELETE FROM {schema}.job_client_id AS c
    WHERE c.id = ANY (ARRAY(SELECT o.id FROM old AS o EXCEPT SELECT l.id FROM live AS l))
)
SELECT count(*) FROM old AS o`)
	forgetRepeatedLanes = store.Define(`
DELETE FROM {schema}.job_lane AS l
WHERE EXISTS (
    SELECT FROM {schema}.job_lane AS first
    WHERE first.queue = l.queue AND first.priority = l.priority AND first.id < l.id)`)
	forgetSilentWorkers = store.Define(`
DELETE FROM {schema}.job_worker AS w
WHERE w.seen_at < clock_timestamp() - interval '1 hour'
  AND w.worker_id <> ALL (ARRAY(SELECT DISTINCT r.worker_id FROM {schema}.job_running AS r))`)
)

func (j *Janitor) housekeep(ctx context.Context) (dropped int, err error) {
	archive, dead := j.keeps()
	errs := []error{
		j.makePartitions(ctx, "job_queue_archive", archive, daysAhead),
		j.makePartitions(ctx, "job_queue_dlq", dead, daysAhead),
	}
	for _, parent := range []string{"job_queue_archive", "job_queue_dlq", "job_log"} {
		n := 0
		errs = append(errs, j.db.Tx(ctx, limit, store.Step{
			Statement: dropExpired, Args: []any{parent}, Scan: func(row pgx.Rows) error { return row.Scan(&n) },
		}))
		dropped += n
	}
	errs = append(errs, j.db.Tx(ctx, limit, store.Step{Statement: expireOutcomes}), j.forgetChosen(ctx), j.db.Tx(ctx, limit,
		store.Step{Statement: forgetRepeatedLanes},
		store.Step{Statement: forgetSilentWorkers}))
	return dropped, errors.Join(errs...)
}

// forgetChosen looks at batches of old ids until one is not full, but for no
// longer than other work may wait: what is left is for the next housekeeping.
func (j *Janitor) forgetChosen(ctx context.Context) error {
	for began := time.Now(); time.Since(began) < forgetIDs; {
		found := 0
		err := j.db.Tx(ctx, limit, store.Step{
			Statement: forgetChosenIDs, Args: []any{10 * batch}, Scan: func(row pgx.Rows) error { return row.Scan(&found) },
		})
		if err != nil || found < 10*batch {
			return err
		}
	}
	return nil
}

// keeps lists the retentions in use, without repetition.
func (j *Janitor) keeps() (archive, dead []int64) {
	add := func(list *[]int64, keep int64) {
		if keep > 0 && !slices.Contains(*list, keep) {
			*list = append(*list, keep)
		}
	}
	add(&archive, j.opts.Keep.Archive)
	add(&dead, j.opts.Keep.DeadLetter)
	for _, k := range j.opts.Queues {
		add(&archive, k.Archive)
		add(&dead, k.DeadLetter)
	}
	return archive, dead
}

// MakePartitions makes the partitions that jobs finished today need if they are
// kept for the given numbers of seconds. A settle that met none calls it.
func (j *Janitor) MakePartitions(ctx context.Context, archive, deadLetter []int64) error {
	return errors.Join(
		j.makePartitions(ctx, "job_queue_archive", archive, 0),
		j.makePartitions(ctx, "job_queue_dlq", deadLetter, 0))
}

// MakeLogPartitions makes the partitions that lines of jobs' logs need if they
// are kept for the given numbers of seconds, a week ahead.
func (j *Janitor) MakeLogPartitions(ctx context.Context, keep []int64) error {
	return j.makePartitions(ctx, "job_log", keep, daysAhead)
}

// makePartitions calls again once some were made: the call tells sessions that
// may have missed those of the one before.
func (j *Janitor) makePartitions(ctx context.Context, parent string, keep []int64, ahead int) error {
	if len(keep) == 0 {
		return nil
	}
	for {
		made := 0
		err := j.db.Tx(ctx, limit, store.Step{
			Statement: makePartitions, Args: []any{parent, keep, ahead}, Scan: func(row pgx.Rows) error { return row.Scan(&made) },
		})
		if err != nil || made == 0 {
			return err
		}
	}
}

// The retentions of jobs that wait to be moved, where the job says its own.
var finishedKeeps = store.Define(`
SELECT DISTINCT coalesce((f.props ->> CASE WHEN f.state = 'completed' THEN 'keep_archive' ELSE 'keep_dlq' END)::bigint, 0),
       f.state = 'completed'
FROM {schema}.job_finished AS f`)

func (j *Janitor) moveFinished(ctx context.Context) (archived, dead int, err error) {
	names, keepArchive, keepDLQ := j.overrides()
	var next uuid.UUID // what lies before it has been seen, in this sweep
	for size := batch; ; {
		var a, d int
		var last *uuid.UUID
		move := func() error {
			a, d, last = 0, 0, nil
			return j.db.Tx(ctx, limit, store.Step{
				Statement: sweep,
				Args:      []any{size, next, j.opts.Keep.Archive, j.opts.Keep.DeadLetter, names, keepArchive, keepDLQ},
				Scan:      func(row pgx.Rows) error { return row.Scan(&a, &d, &last) },
			})
		}
		err := move()
		if store.NoPartition(err) {
			if err = j.makeMissing(ctx); err == nil {
				err = move()
			}
		}
		if store.TookTooLong(err) && size > 1 {
			size /= 2
			continue
		}
		if err != nil {
			return archived, dead, err
		}
		archived, dead = archived+a, dead+d
		if a+d < size {
			return archived, dead, nil
		}
		next = *last
	}
}

func (j *Janitor) makeMissing(ctx context.Context) error {
	archive, dead := j.keeps()
	err := j.db.Tx(ctx, limit, store.Step{Statement: finishedKeeps, Scan: func(row pgx.Rows) error {
		var keep int64
		var completed bool
		if err := row.Scan(&keep, &completed); err != nil {
			return err
		}
		switch {
		case keep <= 0:
		case completed:
			archive = append(archive, keep)
		default:
			dead = append(dead, keep)
		}
		return nil
	}})
	if err != nil {
		return err
	}
	return j.MakePartitions(ctx, archive, dead)
}

// overrides are the queues' retentions by column; zero is no override.
func (j *Janitor) overrides() (names []string, archive, dead []*int64) {
	set := func(keep int64) *int64 {
		if keep == 0 {
			return nil
		}
		return &keep
	}
	for name, k := range j.opts.Queues {
		names = append(names, name)
		archive = append(archive, set(k.Archive))
		dead = append(dead, set(k.DeadLetter))
	}
	return names, archive, dead
}

func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
