package simplequeue

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// claim is a job that this process holds.
type claim struct {
	job       *Job
	route     *queueRoute
	id, nonce int64 // the fence
	suspect   bool  // its worker has died before
	// payloadBytes is the size of a payload stored apart, 0 of one in the row;
	// memory is how much of the payload memory is taken for it. They belong to
	// the poller and then to the job's goroutine.
	payloadBytes, memory int64
	// whole is the job with the payload that is stored apart, nil while that is
	// not here; job is without it.
	whole atomic.Pointer[Job]
	// unpermitted: found when no global permit was free, to be given back
	unpermitted bool
	claimedAt   time.Time
	verdict     chan error  // what ends the job's context; sent to once
	told        atomic.Bool // verdict has been sent
	beaten      atomic.Bool // it has a row in job_lease
	settled     atomic.Bool // an outcome has been taken; there is no second one

	// What its handler does in transactions of its own, which may lock its row:
	// inTx, there was one; entering, statements under way in one; completing, one
	// has completed the job, if it commits.
	inTx, completing atomic.Bool
	entering         atomic.Int32

	leaving atomic.Int32
}

// apart reports whether the payload is not here yet.
func (c *claim) apart() bool { return c.payloadBytes > 0 && c.whole.Load() == nil }

// fetched adds the payload that is stored apart.
func (c *claim) fetched(p store.Payload) {
	whole := *c.job
	whole.Payload, whole.Raw = p.JSON, p.Raw
	c.whole.Store(&whole)
}

// full is the job with all of it that is here.
func (c *claim) full() *Job {
	if whole := c.whole.Load(); whole != nil {
		return whole
	}
	return c.job
}

// tell ends the job's context with a cause, once.
func (c *claim) tell(cause error) {
	if c.told.CompareAndSwap(false, true) {
		c.verdict <- cause
	}
}

// heartbeat is the goroutine that a job's goroutine starts and owns. It watches
// the claim while the handler runs: it cancels the handler's context when the
// beater finds the lease lost, the job cancelled or the draining over, and it
// reports a handler that does not return although its context has ended. It
// receives from the channel once, as the last thing it does.
type heartbeat chan struct{}

func startHeartbeat(c *claim, cancel context.CancelCauseFunc, stuckAfter time.Duration, stuck func()) heartbeat {
	stop := make(heartbeat)
	go func() {
		ended := false
		defer func() {
			if !ended {
				<-stop
			}
		}()
		select {
		case <-stop:
			ended = true
			return
		case cause := <-c.verdict:
			cancel(cause)
		}
		if stuckAfter < 0 {
			return
		}
		t := time.NewTimer(stuckAfter)
		defer t.Stop()
		select {
		case <-stop:
			ended = true
		case <-t.C:
			stuck()
		}
	}()
	return stop
}

// end waits until the goroutine has nothing left to do.
func (h heartbeat) end() { h <- struct{}{} }

// leaser is the part of the store that the beater needs.
type leaser interface {
	Beat(ctx context.Context, limit time.Duration, claimIDs, nonces []int64) (map[int64]bool, error)
	TryBeat(ctx context.Context, limit time.Duration) error
}

// cancelReader is the part of the store that watchCancels needs.
type cancelReader interface {
	CancelRequests(ctx context.Context, limit time.Duration) ([]store.CancelRequest, error)
}

// beater renews the leases of all claims that outlive an interval: many
// heartbeats, one statement. A claim is its concern from the claim until its
// outcome is written, so that a slow write does not cost the lease.
type beater struct {
	db       leaser
	interval time.Duration
	lease    time.Duration
	log      *slog.Logger
	health   *loopHealth
	stats    *counters

	gone func(*claim) // told of each claim that nothing more is written for

	mu   sync.Mutex
	live map[int64]*claim
}

func newBeater(db leaser, interval, lease time.Duration, log *slog.Logger, health *loopHealth, stats *counters) *beater {
	return &beater{db: db, interval: interval, lease: lease, log: log, health: health, stats: stats, gone: func(*claim) {}, live: map[int64]*claim{}}
}

func (b *beater) add(claims []*claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range claims {
		if old := b.live[c.id]; old != nil && old != c {
			old.tell(ErrLeaseLost) // a failover has set the ids back
			b.gone(old)
		}
		b.live[c.id] = c
	}
}

// remove forgets a claim; another one of the same id, from before a failover,
// stays.
func (b *beater) remove(c *claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live[c.id] == c {
		delete(b.live, c.id)
		b.gone(c)
	}
}

// unsettled returns the claims whose handlers have not returned.
func (b *beater) unsettled() []*claim {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []*claim
	for _, c := range b.live {
		if !c.settled.Load() {
			list = append(list, c)
		}
	}
	return list
}

// tellAll ends the contexts of all claims with a cause.
func (b *beater) tellAll(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.live {
		c.tell(cause)
	}
}

func (b *beater) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.live)
}

// run beats until ctx ends. A beat that fails is tried again at a fifth of the
// interval: a lease has time for several. One that got no answer is repeated at
// once, by another connection, the first time: a claim whose first beat it was
// may be too old for another wait.
func (b *beater) run(ctx context.Context) {
	var refusedSince time.Time // the server has answered, but with errors only
	wait, failed := b.interval, false
	for {
		if waitFor(ctx, wait) != nil {
			return
		}
		started := time.Now()
		err := b.beat(ctx)
		if err != nil && !failed && !store.Answered(err) {
			err = b.beat(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		failed = err != nil
		b.health.report(err)
		if err == nil {
			refusedSince = time.Time{}
			wait = max(b.interval-time.Since(started), b.interval/5)
			continue
		}
		wait = b.interval / 5
		if !b.refused(ctx, err) {
			refusedSince = time.Time{}
			continue
		}
		if refusedSince.IsZero() {
			refusedSince = started
		}
		// Others can reach the database, so the leases are lost by now.
		if time.Since(refusedSince) > b.lease {
			b.log.ErrorContext(ctx, "heartbeats refused for the length of a lease, leases given up", "err", err)
			b.loseAll()
		}
	}
}

// refused reports whether a beat failed although others can be written. Where it
// had to wait, or got no answer, that is tried: while somebody has locked the
// tables nobody's beats are written, and the reaper takes no job from anybody.
func (b *beater) refused(ctx context.Context, err error) bool {
	if store.Answered(err) && !store.HadToWait(err) {
		return !store.Unwritable(err)
	}
	return b.db.TryBeat(ctx, b.limit()) == nil
}

// limit is how long a beat may take. A first beat may come two intervals after
// its claim, and a lease is two and a half.
func (b *beater) limit() time.Duration { return max(b.interval/4, 100*time.Millisecond) }

func (b *beater) beat(ctx context.Context) error {
	due := b.due()
	if len(due) == 0 {
		return nil
	}
	ids, nonces := make([]int64, len(due)), make([]int64, len(due))
	for i, c := range due {
		ids[i], nonces[i] = c.id, c.nonce
		c.beaten.Store(true)
	}
	alive, err := b.db.Beat(ctx, b.limit(), ids, nonces)
	if err != nil {
		return err
	}
	for _, c := range due {
		if !alive[c.id] {
			b.lose(c)
		}
	}
	return nil
}

// due lists the claims that are at least one interval old, by id.
func (b *beater) due() []*claim {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	var due []*claim
	for _, c := range b.live {
		if now.Sub(c.claimedAt) >= b.interval {
			due = append(due, c)
		}
	}
	slices.SortFunc(due, func(a, b *claim) int { return cmp.Compare(a.id, b.id) })
	return due
}

func (b *beater) lose(c *claim) {
	if c.settled.Load() || c.completing.Load() {
		return // its outcome is being written, or just was, here or by its handler
	}
	if !c.told.Load() {
		b.stats.leasesLost.Add(1)
		b.log.Warn("lease lost", "job_id", c.job.ID, "queue", c.job.Queue, "attempt", c.job.Attempt)
	}
	c.tell(ErrLeaseLost)
	b.remove(c)
}

func (b *beater) loseAll() {
	for _, c := range b.unsettled() {
		if time.Since(c.claimedAt) > b.lease {
			b.lose(c)
		}
	}
}

// watchCancels looks for requests to cancel jobs that run here, when woken and
// once an interval. db must not use the connection for beats, which a look that
// gets no answer would keep from them for most of a lease.
func (b *beater) watchCancels(ctx context.Context, db cancelReader, every time.Duration, wake <-chan struct{}, health *loopHealth) {
	for {
		t := time.NewTimer(jittered(every))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-wake:
			t.Stop()
		case <-t.C:
		}
		if b.count() == 0 {
			health.report(nil)
			continue
		}
		requests, err := db.CancelRequests(ctx, claimLimit)
		if ctx.Err() != nil {
			return
		}
		health.report(err)
		for _, r := range requests {
			b.mu.Lock()
			c := b.live[r.ClaimID]
			b.mu.Unlock()
			if c != nil && c.nonce == r.Nonce {
				c.tell(cancelledBecause(r.Reason))
			}
		}
	}
}
