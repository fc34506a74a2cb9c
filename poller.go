package simplequeue

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/simplequeue/simplequeue/internal/store"
)

// claimer is the part of the store that the poller needs.
type claimer interface {
	Claim(ctx context.Context, limit time.Duration, r store.ClaimRequest) ([]store.Claimed, error)
	ClaimParked(ctx context.Context, limit time.Duration, r store.ClaimRequest, kinds []string) ([]store.Claimed, error)
	Adopt(ctx context.Context, limit time.Duration, worker uuid.UUID, nonces []int64) ([]store.Claimed, error)
	TryBeat(ctx context.Context, limit time.Duration) error
	Payloads(ctx context.Context, limit time.Duration, ids [][16]byte) (map[[16]byte]store.Payload, error)
	Lanes(ctx context.Context, limit time.Duration, after int64, add func(store.Lane)) (int64, error)
	Heads(ctx context.Context, limit time.Duration, lanes []store.Lane) (store.Heads, error)
	HeedPauses(ctx context.Context, limit time.Duration, worker uuid.UUID, queues []string) (known bool, err error)
}

const (
	claimLimit    = 10 * time.Second
	prefetchLimit = time.Second // all jobs of a claim wait for it
	maxPrefetch   = 8 << 20     // bytes of payloads fetched with a claim
	lanesEvery    = time.Second
	lanesAllEvery = time.Minute
)

// poller claims jobs and hands them to the runner. It waits for a reason to
// look (a wake-up, a freed permit, the poll interval), then on the global
// semaphore, and takes every permit that is free: claims grow with the load.
type poller struct {
	db        claimer
	worker    uuid.UUID
	leaseMS   int
	threshold int64
	every     time.Duration
	global    *semaphore.Weighted
	routes    *routes
	book      *laneBook
	memory    *payloadMemory
	log       *slog.Logger
	stats     *counters
	health    *loopHealth
	hold      func([]*claim) // keeps the leases of claims until their outcomes are written
	dispatch  func([]*claim) // runs claims that are held

	poke    chan struct{} // size 1
	waiting atomic.Bool   // the poller sleeps; a freed permit should poke it

	mu    sync.Mutex
	hints []store.Lane // lanes that may hold jobs
	all   bool         // every lane may

	pauses pauseBook

	suspects   atomic.Int64 // running here
	parkedAt   time.Time
	parkedNext int // queue at which the next look for parked jobs starts
	lanesAt    time.Time
	headsAt    time.Time
	allAt      time.Time
	lastLane   int64
	doubtful   []doubt
	adoptAt    time.Time
	blindSince time.Time // doubtful cannot be looked for, but the database is there
}

// doubt is a claim that may have committed, or may still do so: the server goes
// on with a statement whose client has gone away.
type doubt struct {
	nonce        int64
	asked, until time.Time
}

const adoptEvery = 250 * time.Millisecond

// hint tells the poller that lanes may hold jobs; no lanes means any may.
func (p *poller) hint(lanes []store.Lane) {
	p.mu.Lock()
	if len(lanes) == 0 {
		p.all = true
	}
	p.hints = append(p.hints, lanes...)
	if len(p.hints) > 4*maxProbes {
		p.hints, p.all = nil, true
	}
	p.mu.Unlock()
	p.wake()
}

func (p *poller) wake() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// freed tells the poller that a job has ended. It is called for every job.
func (p *poller) freed() {
	if p.waiting.Load() {
		p.wake()
	}
}

// run claims until ctx ends. A claim under way is not cut off: its jobs would be
// held until their leases expire. hard ends even that.
func (p *poller) run(ctx, hard context.Context) {
	defer func() {
		p.adoptAt = time.Time{}
		_ = p.adopt(hard) // else the jobs would count as crashed
	}()
	retry := newRetry()
	for ctx.Err() == nil {
		err := p.turn(ctx, hard)
		if ctx.Err() != nil {
			return
		}
		p.health.report(err)
		if err == nil {
			retry.reset()
			continue
		}
		if retry.count == 0 {
			p.log.WarnContext(ctx, "claim failed, trying again", "err", err)
		}
		if retry.wait(ctx) != nil {
			return
		}
	}
}

// turn waits until there is something to claim, and claims it.
func (p *poller) turn(ctx, hard context.Context) error {
	if err := p.adopt(hard); err != nil {
		return err
	}
	if err := p.refreshLanes(ctx); err != nil {
		return err
	}
	if err := p.readHeads(ctx); err != nil {
		return err
	}
	p.takeHints()
	p.book.suspectBusy = p.suspectBusy()
	now := time.Now()
	wait := min(p.book.dueIn(now), p.parkedAt.Add(p.every).Sub(now), p.lanesAt.Add(lanesEvery).Sub(now))
	if wait > 0 {
		p.sleep(ctx, wait)
		return nil
	}
	permits, err := p.takePermits(ctx)
	if err != nil {
		return nil // ctx has ended
	}
	if p.pauses.look.Load() || time.Since(p.lanesAt) >= lanesEvery {
		p.global.Release(int64(permits)) // the wait was long: which queues are paused is to be read first
		return nil
	}
	used, err := p.claim(hard, permits)
	p.global.Release(int64(permits - used))
	return err
}

func (p *poller) sleep(ctx context.Context, wait time.Duration) {
	p.waiting.Store(true)
	defer p.waiting.Store(false)
	// A permit may have been freed before the flag was up.
	p.book.suspectBusy = p.suspectBusy()
	if p.book.dueIn(time.Now()) <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-p.poke:
	case <-t.C:
	}
}

func (p *poller) takeHints() {
	p.mu.Lock()
	hints, all := p.hints, p.all
	p.hints, p.all = nil, false
	p.mu.Unlock()
	for _, l := range hints {
		p.book.add(l)
	}
	if all {
		p.book.addAll()
	}
}

// refreshLanes learns of lanes that other programs have come to use.
func (p *poller) refreshLanes(ctx context.Context) error {
	now := time.Now()
	if !p.pauses.look.Swap(false) && now.Sub(p.lanesAt) < lanesEvery {
		return nil
	}
	paused := []string{} // the column takes no NULL
	after := p.lastLane
	if now.Sub(p.allAt) >= lanesAllEvery {
		after, p.allAt = 0, now
	}
	last, err := p.db.Lanes(ctx, claimLimit, after, func(l store.Lane) {
		switch {
		case l.Priority == store.PausedLane:
			paused = append(paused, l.Queue)
		case !p.book.knows(l):
			p.book.add(l)
		}
	})
	if err != nil {
		return fmt.Errorf("read lanes: %w", err)
	}
	p.lastLane, p.lanesAt = last, now
	return p.heed(ctx, paused)
}

// takePermits waits for the threshold and takes all that is free beyond it.
func (p *poller) takePermits(ctx context.Context) (int, error) {
	for !p.global.TryAcquire(p.threshold) {
		wait, cancel := context.WithTimeout(ctx, silentFor/5)
		err := p.global.Acquire(wait, p.threshold)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return 0, err
		}
		p.health.alive() // every permit is in use, which is no problem
	}
	n := p.threshold
	for step := int64(512); step > 0; step /= 2 {
		for n+step <= maxClaim && p.global.TryAcquire(step) {
			n += step
		}
	}
	return int(n), nil
}

// claim makes one claim for at most permits jobs and starts them. It returns how
// many permits are in use now.
func (p *poller) claim(ctx context.Context, permits int) (used int, err error) {
	now := time.Now()
	if now.Sub(p.parkedAt) >= p.every {
		used, err = p.claimParked(ctx, permits)
		if err != nil {
			return used, err
		}
		p.parkedAt = now
	}
	p.book.suspectBusy = p.suspectBusy() // one that was parked may have just begun
	r := p.book.request(now, permits-used)
	if len(r.probes) == 0 || r.limit == 0 {
		return used, nil
	}
	sr := store.ClaimRequest{Worker: p.worker, Nonce: int64(rand.Uint64()), LeaseMS: p.leaseMS, Limit: r.limit, Chunk: r.chunk}
	for _, g := range r.groups {
		sr.First = append(sr.First, int32(g.first+1))
		sr.Last = append(sr.Last, int32(g.last))
		sr.Budget = append(sr.Budget, int32(g.budget))
	}
	for _, pr := range r.probes {
		sr.Queue = append(sr.Queue, pr.queue.route.name)
		sr.Lane = append(sr.Lane, pr.lane.lane)
		sr.After = append(sr.After, pr.after)
	}
	asked := time.Now()
	jobs, err := p.db.Claim(ctx, claimLimit, sr)
	if err != nil {
		p.doubt(err, sr.Nonce, asked)
		p.book.addAll() // what this claim was to look at is still to be looked at
		return used, fmt.Errorf("claim: %w", err)
	}
	p.book.claimed(r, jobs, time.Since(asked), time.Now())
	p.stats.risen.Store(p.book.risen)
	p.start(ctx, jobs, sr.Nonce, asked, len(jobs))
	return used + len(jobs), nil
}

// suspectBusy reports whether a suspect runs here, or may: a claim in doubt may
// hold one.
func (p *poller) suspectBusy() bool { return p.suspects.Load() > 0 || len(p.doubtful) > 0 }

// claimParked claims jobs of kinds known here that were parked elsewhere. The
// kinds of a queue, in random order, share its free permits.
func (p *poller) claimParked(ctx context.Context, permits int) (int, error) {
	sr := store.ClaimRequest{Worker: p.worker, Nonce: int64(rand.Uint64()), LeaseMS: p.leaseMS, Limit: permits}
	var kinds []string
	add := func(queue, kind string, anyKind bool, budget int) {
		if budget > 0 {
			sr.Queue, kinds = append(sr.Queue, queue), append(kinds, kind)
			sr.AnyKind, sr.Budget = append(sr.AnyKind, anyKind), append(sr.Budget, int32(budget))
			// One suspect at a time, from whichever comes first this time.
			sr.Suspect = append(sr.Suspect, len(kinds) == 1 && !p.suspectBusy())
		}
	}
	for i := range p.book.queues {
		if len(kinds) >= maxProbes {
			p.parkedNext += i // the next time, the other queues
			break
		}
		route := p.book.queues[(p.parkedNext+i)%len(p.book.queues)].route
		budget, n := route.budget(), len(route.kinds)
		if route.kinds == nil && !route.parks.Load() {
			add(route.name, "", true, budget)
		}
		for kind := range route.kinds {
			share := (budget + n - 1) / n
			add(route.name, kind, false, share)
			budget, n = budget-share, n-1
		}
	}
	if len(kinds) == 0 {
		return 0, nil
	}
	asked := time.Now()
	jobs, err := p.db.ClaimParked(ctx, claimLimit, sr, kinds)
	if err != nil {
		p.doubt(err, sr.Nonce, asked)
		return 0, fmt.Errorf("claim parked jobs: %w", err)
	}
	p.start(ctx, jobs, sr.Nonce, asked, len(jobs))
	return len(jobs), nil
}

// doubt remembers a claim whose commit may have gone through.
func (p *poller) doubt(err error, nonce int64, asked time.Time) {
	if !store.Answered(err) {
		p.doubtful = append(p.doubtful, doubt{nonce, asked, time.Now().Add(claimLimit)})
	}
}

// adopt starts the jobs of claims that committed although their answer was
// lost. Without it they would count as crashed when their lease expires.
func (p *poller) adopt(ctx context.Context) error {
	now := time.Now()
	if len(p.doubtful) == 0 || now.Before(p.adoptAt) {
		return nil
	}
	nonces, asked := make([]int64, len(p.doubtful)), map[int64]time.Time{}
	for i, d := range p.doubtful {
		nonces[i], asked[d.nonce] = d.nonce, d.asked
	}
	jobs, err := p.db.Adopt(ctx, claimLimit, p.worker, nonces)
	if err != nil {
		p.dropDoubts(ctx, err)
		return fmt.Errorf("look for claims in doubt: %w", err)
	}
	p.blindSince = time.Time{}
	p.adoptAt = now.Add(adoptEvery)
	p.doubtful = slices.DeleteFunc(p.doubtful, func(d doubt) bool {
		return now.After(d.until) || slices.ContainsFunc(jobs, func(j store.Claimed) bool { return j.Nonce == d.nonce })
	})
	if len(jobs) == 0 {
		return nil
	}
	p.log.InfoContext(ctx, "claims in doubt found", "jobs", len(jobs))
	byNonce := map[int64][]store.Claimed{}
	for _, j := range jobs {
		byNonce[j.Nonce] = append(byNonce[j.Nonce], j)
	}
	for nonce, jobs := range byNonce {
		permits := 0
		for permits < len(jobs) && p.global.TryAcquire(1) {
			permits++
		}
		p.start(ctx, jobs, nonce, asked[nonce], permits)
	}
	return nil
}

// dropDoubts gives up what cannot be looked for, so that claims go on: after the
// length of a lease in which beats could be written, for then the reaper has what
// there was. While they cannot be written no lease ages, and the doubts stay.
func (p *poller) dropDoubts(ctx context.Context, cause error) {
	if p.db.TryBeat(ctx, prefetchLimit) != nil {
		p.blindSince = time.Time{}
		return
	}
	now := time.Now()
	if p.blindSince.IsZero() {
		p.blindSince = now
	}
	if now.Sub(p.blindSince) <= time.Duration(p.leaseMS)*time.Millisecond {
		return
	}
	before := len(p.doubtful)
	p.doubtful = slices.DeleteFunc(p.doubtful, func(d doubt) bool { return now.After(d.until) })
	if n := before - len(p.doubtful); n > 0 {
		p.log.ErrorContext(ctx, "claims in doubt cannot be looked for, given up", "claims", n, "err", cause)
	}
}

// start makes claims of rows and hands them to the runner, with a global permit
// for each, or for the first of them: the others are given back. Their leases
// began after the claim was asked for, and are kept from now on.
func (p *poller) start(ctx context.Context, rows []store.Claimed, nonce int64, asked time.Time, permits int) {
	if len(rows) == 0 {
		return
	}
	slices.SortFunc(rows, byLane)
	claims := make([]*claim, len(rows))
	var apart [][16]byte
	bytes := int64(0)
	for i := range rows {
		c := newClaim(&rows[i], nonce, asked)
		c.route, c.unpermitted = p.routes.find(c.job.Queue), i >= permits
		c.route.inFlight.Add(1)
		c.route.window.enter(1)
		if c.suspect {
			p.suspects.Add(1)
		}
		if c.apart() && !c.unpermitted && bytes+c.payloadBytes <= maxPrefetch && p.memory.tryTake(c) {
			bytes += c.payloadBytes
			apart = append(apart, rows[i].ID)
		}
		claims[i] = c
	}
	p.stats.claimed.Add(int64(len(claims)))
	p.stats.claims.Add(1)
	p.hold(claims)
	if len(apart) > 0 {
		// A job whose payload does not come with it fetches it itself.
		if found, err := p.db.Payloads(ctx, prefetchLimit, apart); err == nil {
			for _, c := range claims {
				if payload, ok := found[c.job.ID]; ok {
					c.fetched(payload)
				}
			}
		}
	}
	p.dispatch(claims)
}
