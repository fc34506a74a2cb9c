package simplequeue

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// outcomeOf is the outcome of one claim, on its way to the database.
type outcomeOf struct {
	claim    *claim
	verdict  verdict
	doubtful bool // an earlier try may have written it
}

// settler is the part of the store that the completer needs.
type settler interface {
	looker
	Tx(ctx context.Context, limit time.Duration, steps ...store.Step) error
}

// partitioner makes the partitions that a settle has missed.
type partitioner interface {
	MakePartitions(ctx context.Context, archive, deadLetter []int64) error
}

// completer writes outcomes in batches: whatever has gathered while the last
// batch was written. Its channel is the back-pressure: a job keeps its global
// permit until its outcome is accepted.
type completer struct {
	db         settler
	partitions partitioner
	in         chan outcomeOf
	handed     chan<- outcomeOf // takes those of claims that transactions may have locked
	finish     chan struct{}    // closed when no more outcomes will come
	aside      bool
	beater     *beater
	log        *slog.Logger
	stats      *counters
	health     *loopHealth
	written    func([]outcomeOf) // told what has been written
	late       *lateBook         // while it runs
}

const (
	maxSettle      = 1000
	maxSettleBytes = 8 << 20 // of results
	settleLimit    = 10 * time.Second
)

// accept takes the outcome of a claim and reports whether it is the first; a
// second one is dropped. It waits while the buffer is full.
func (c *completer) accept(ctx context.Context, o outcomeOf) bool {
	if !o.claim.settled.CompareAndSwap(false, true) {
		return false
	}
	// Cut now: the texts may hold a whole payload, and the outcome may wait.
	o.verdict.text = clean(o.verdict.text, maxErrorText)
	o.verdict.reason = clean(o.verdict.reason, maxErrorText)
	to := (chan<- outcomeOf)(c.in)
	if o.claim.inTx.Load() {
		to = c.handed
	}
	select {
	case to <- o:
	case <-ctx.Done():
		c.log.Error("outcome not written: stopped first", "job_id", o.claim.job.ID, "queue", o.claim.job.Queue)
	}
	return true
}

// run writes until finish is closed and everything accepted is written, or ctx
// ends.
func (c *completer) run(ctx context.Context) {
	c.late = &lateBook{}
	batch := make([]outcomeOf, 0, maxSettle)
	finish := c.finish
	for finish != nil || len(c.in) > 0 || len(c.late.open) > 0 {
		batch = batch[:0]
		bytes := 0
		add := func(o outcomeOf) { batch, bytes = append(batch, o), bytes+len(o.verdict.result) }
		due, stop := c.late.timer()
		select {
		case o := <-c.in:
			add(o)
		case <-due:
			c.writeLate(ctx)
		case <-finish:
			finish = nil
		case <-ctx.Done():
		}
		stop()
		if ctx.Err() != nil {
			if n := len(c.late.open) + len(batch); n > 0 {
				c.log.ErrorContext(ctx, "outcomes not written: stopped first", "jobs", n)
			}
			return
		}
		if len(batch) == 0 {
			continue
		}
		for len(batch) < maxSettle && bytes < maxSettleBytes {
			select {
			case o := <-c.in:
				add(o)
				continue
			default:
			}
			break
		}
		for sorted, again := apart(batch); len(sorted) > 0; sorted, again = apart(again) {
			c.flush(ctx, sorted, false)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// flush writes a sorted batch, for as long as it takes. An outcome that the database
// refuses is found by halving the batch, and does not hold up the others; while
// the completer runs, neither does one that cannot be written now: it is left to
// the late ones. doubtful means that an earlier try may have written them.
func (c *completer) flush(ctx context.Context, batch []outcomeOf, doubtful bool) {
	retry := newRetry()
	aside := c.aside
	for {
		moved, err := c.write(ctx, batch, aside, settleLimit)
		if store.NoPartition(err) {
			if err = c.makePartitions(ctx, batch); err == nil {
				moved, err = c.write(ctx, batch, aside, settleLimit)
			}
			if err != nil && store.Answered(err) && !aside {
				c.log.ErrorContext(ctx, "partition missing and not made, outcomes set aside", "err", err)
				aside = true
				continue
			}
		}
		c.health.report(err)
		switch {
		case err == nil:
			c.confirm(batch, moved, doubtful)
			return
		case ctx.Err() != nil:
			c.log.ErrorContext(ctx, "outcomes not written: stopped first", "jobs", len(batch), "err", err)
			return
		case c.late != nil && store.TookTooLong(err) && c.setAside(ctx, &batch, doubtful):
			if len(batch) == 0 {
				return
			}
		case len(batch) > 1 && (store.TookTooLong(err) || store.Internal(err)):
			c.flush(ctx, batch[:len(batch)/2], doubtful)
			c.flush(ctx, batch[len(batch)/2:], doubtful)
			return
		case c.late != nil && (store.TookTooLong(err) || store.Internal(err)) && c.late.add(batch[0], doubtful, lateFirst):
			c.log.WarnContext(ctx, "outcome not written, trying again later",
				"job_id", batch[0].claim.job.ID, "queue", batch[0].claim.job.Queue, "err", err)
			return
		case store.Transient(err):
			doubtful = doubtful || !store.Answered(err) && !store.NotSent(err)
			if retry.count == 0 {
				c.log.WarnContext(ctx, "outcomes not written, trying again", "jobs", len(batch), "err", err)
			}
			if retry.wait(ctx) != nil {
				c.log.ErrorContext(ctx, "outcomes not written: stopped first", "jobs", len(batch), "err", err)
				return
			}
		case len(batch) > 1:
			c.flush(ctx, batch[:len(batch)/2], doubtful)
			c.flush(ctx, batch[len(batch)/2:], doubtful)
			return
		default:
			c.refused(ctx, batch[0], err)
			return
		}
	}
}

// refused writes an outcome without the text, or the result, that the database
// would not take.
func (c *completer) refused(ctx context.Context, o outcomeOf, cause error) {
	o.verdict.text, o.verdict.stack = "error text refused by the database: "+store.Code(cause), ""
	if o.verdict.result != "" {
		o.verdict.result = ""
		c.log.ErrorContext(ctx, "result refused by the database, job completes without", "job_id", o.claim.job.ID, "queue", o.claim.job.Queue, "err", cause)
	}
	batch := []outcomeOf{o}
	retry := newRetry()
	moved, err := c.write(ctx, batch, o.verdict.state != "", settleLimit)
	for err != nil && store.Transient(err) && retry.wait(ctx) == nil {
		moved, err = c.write(ctx, batch, o.verdict.state != "", settleLimit)
	}
	if err != nil {
		// The reaper will find it when its lease has expired.
		c.beater.remove(o.claim)
		c.log.ErrorContext(ctx, "outcome refused by the database", "job_id", o.claim.job.ID, "queue", o.claim.job.Queue, "err", cause)
		return
	}
	c.confirm(batch, moved, false)
}

// confirm ends what the engine holds for the claims of a batch. A claim that did
// not move was lost, unless an earlier try of the same batch moved it.
func (c *completer) confirm(batch []outcomeOf, moved map[int64]bool, doubtful bool) {
	written := make([]outcomeOf, 0, len(batch))
	for _, o := range batch {
		c.beater.remove(o.claim)
		if moved[o.claim.id] || doubtful || o.doubtful {
			c.stats.count(o)
			written = append(written, o)
			continue
		}
		c.stats.leasesLost.Add(1)
		c.log.Warn("outcome dropped: lease lost", "job_id", o.claim.job.ID, "queue", o.claim.job.Queue, "attempt", o.claim.job.Attempt)
	}
	c.written(written)
}

// write settles a batch in one transaction and returns the claims that moved.
func (c *completer) write(ctx context.Context, batch []outcomeOf, aside bool, limit time.Duration) (map[int64]bool, error) {
	moved := make(map[int64]bool, len(batch))
	scan := func(row pgx.Rows) error {
		var id int64
		if err := row.Scan(&id); err != nil {
			return err
		}
		moved[id] = true
		return nil
	}
	steps := settleSteps(batch, aside)
	for i := range steps {
		if steps[i].Statement != store.LockClaims {
			steps[i].Scan = scan
		}
	}
	return moved, c.db.Tx(ctx, limit, steps...)
}

// makePartitions makes what the batch needs.
func (c *completer) makePartitions(ctx context.Context, batch []outcomeOf) error {
	var archive, dead []int64
	for _, o := range batch {
		archive = append(archive, o.claim.keepArchive())
		dead = append(dead, o.claim.keepDead())
	}
	compact := func(list []int64) []int64 { slices.Sort(list); return slices.Compact(list) }
	return c.partitions.MakePartitions(ctx, compact(archive), compact(dead))
}

// retention is the job's own, else its queue's.
func (c *claim) retention() Retention { return c.job.Retention.or(c.route.retention) }

func (c *claim) keepArchive() int64 { return c.keep(c.retention().Archive) }
func (c *claim) keepDead() int64    { return c.keep(c.retention().DeadLetter) }

// keep is how long the job is kept, in seconds: what somebody may be waiting for
// stays for ten minutes, if it is kept at all.
func (c *claim) keep(d time.Duration) int64 {
	seconds := keepSeconds(d)
	if c.job.awaited && seconds >= 0 {
		seconds = max(seconds, outcomeKept)
	}
	return seconds
}

// outcomeOnly reports whether nothing is kept of the job, ended so, but what
// whoever waits for it is to be told.
func (c *claim) outcomeOnly(s State) bool {
	if !c.job.awaited {
		return false
	}
	keep := c.retention().DeadLetter
	if s == StateCompleted {
		keep = c.retention().Archive
	}
	return keep == KeepNothing
}
