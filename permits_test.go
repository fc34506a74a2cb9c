package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// gauge counts what runs at once and the most that ever did.
type gauge struct{ now, most atomic.Int64 }

func (g *gauge) enter() {
	n := g.now.Add(1)
	for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
	}
}

func (g *gauge) leave() { g.now.Add(-1) }

// TestPermitsBoundWhatRunsAtOnce: never more than the global and the queue's
// permits, and all of them are used.
func TestPermitsBoundWhatRunsAtOnce(t *testing.T) {
	t.Parallel()
	var all gauge
	queues := map[string]*gauge{"a": {}, "b": {}, "c": {}}
	process := func(_ context.Context, job *simplequeue.Job) error {
		g := queues[job.Queue]
		all.enter()
		g.enter()
		defer all.leave()
		defer g.leave()
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		return nil
	}
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Handlers:      []simplequeue.Handler{simplequeue.HandlerFunc("*", process)},
		GlobalPermits: 10, QueuePermits: 5, Queues: map[string]simplequeue.QueueOptions{"b": {Permits: 2}, "c": {Permits: 9}},
	})
	const each = 300
	for queue := range queues {
		if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: queue}}, each)); err != nil {
			t.Fatal(err)
		}
	}
	start(t, q)
	eventually(t, "all jobs are done", func() bool { return q.Stats().Completed == 3*each })
	for queue, limit := range map[string]int64{"a": 5, "b": 2, "c": 9} {
		if most := queues[queue].most.Load(); most > limit || most < 2 {
			t.Errorf("%s: %d at once, want up to %d", queue, most, limit)
		}
	}
	if most := all.most.Load(); most > 10 || most < 6 {
		t.Errorf("%d at once in all, want up to 10", most)
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 10) })
}

// TestSetQueuePermitsCountsOldPermits: a lower limit lets nothing start until
// the jobs that run have gone below it; a higher one works at once.
func TestSetQueuePermitsCountsOldPermits(t *testing.T) {
	t.Parallel()
	var g gauge
	var started atomic.Int64
	finish := make(chan struct{})
	opts := handler("q", func(context.Context, *simplequeue.Job) error {
		g.enter()
		defer g.leave()
		started.Add(1)
		<-finish
		return nil
	})
	opts.PermitWait = 10 * time.Millisecond
	q := newQueue(t, pgtest.New(t), opts)
	if err := q.SetQueuePermits("q", 8); err != nil { // before the queue is met
		t.Fatal(err)
	}
	start(t, q)
	defer close(finish)
	if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "q", MaxAttempts: 1}}, 60)); err != nil {
		t.Fatal(err)
	}
	settle := func(what string, running, total int64) {
		t.Helper()
		eventually(t, what, func() bool { return g.now.Load() == running && started.Load() == total })
		time.Sleep(30 * time.Millisecond) // for one too many to start
		if g.now.Load() != running || started.Load() != total {
			t.Fatalf("%s: %d run, %d have started, want %d and %d", what, g.now.Load(), started.Load(), running, total)
		}
	}
	set := func(n int) {
		t.Helper()
		if err := q.SetQueuePermits("q", n); err != nil {
			t.Fatal(err)
		}
	}
	settle("eight run", 8, 8)
	set(2)
	settle("none is taken away", 8, 8)
	for range 5 {
		finish <- struct{}{}
	}
	settle("three old ones keep the limit of two", 3, 8)
	finish <- struct{}{}
	settle("two old ones fill it", 2, 8)
	finish <- struct{}{}
	settle("now one starts", 2, 9)
	set(5)
	settle("three more start", 5, 12)
	if s := q.Stats().Queues["q"]; s.Permits != 5 || s.Running != 5 {
		t.Errorf("stats %+v, want 5 of 5", s)
	}
	for name, err := range map[string]error{"permits = 0": q.SetQueuePermits("q", 0), `queue = `: q.SetQueuePermits("", 1)} {
		if err == nil || !strings.HasPrefix(err.Error(), "simplequeue: "+name) {
			t.Errorf("%v, want an error about %s", err, name)
		}
	}
}

// TestSetQueuePermitsWhileWorking: the limit changes all the time, on many
// queues, and no job is lost, runs above the highest limit or loses an attempt.
func TestSetQueuePermitsWhileWorking(t *testing.T) {
	t.Parallel()
	var g gauge
	var attempts atomic.Int64
	q := newQueue(t, pgtest.New(t), handler("*", func(_ context.Context, job *simplequeue.Job) error {
		if job.Queue == "q" {
			g.enter()
			defer g.leave()
		}
		attempts.Add(int64(job.Attempt))
		time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
		return nil
	}))
	if err := q.SetQueuePermits("q", 7); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				queue := "q"
				if i > 0 {
					queue = fmt.Sprintf("q%d", n%100)
				}
				if err := q.SetQueuePermits(queue, 1+rand.IntN(7)); err != nil {
					t.Error(err)
				}
				_ = q.Stats()
			}
		})
	}
	const total = 1200
	for i := range total / 100 {
		jobs := slices.Repeat([]simplequeue.NewJob{{Queue: "q"}}, 90)
		for n := range 10 {
			jobs = append(jobs, simplequeue.NewJob{Queue: fmt.Sprintf("q%d", i*10+n)})
		}
		if _, err := q.InsertMany(t.Context(), jobs); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all jobs are done", func() bool { return q.Stats().Completed == total })
	close(stop)
	wg.Wait()
	if n := attempts.Load(); n != total {
		t.Errorf("%d attempts of %d jobs", n, total)
	}
	if most := g.most.Load(); most > 7 {
		t.Errorf("%d at once, want 7 at most", most)
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 500) })
}

// TestHandlerPermitOutcomes: what a handler's permit answers, and what becomes
// of the job. The release function is called once for each grant.
func TestHandlerPermitOutcomes(t *testing.T) {
	t.Parallel()
	var released, granted, ran, asked counter
	acquire := func(ctx context.Context, job *simplequeue.Job) (func(), error) {
		n := asked.add(job.Kind)
		grant := func() (func(), error) {
			granted.add(job.Kind)
			return func() { released.add(job.Kind) }, nil
		}
		switch job.Kind {
		case "nil release":
			return nil, nil
		case "cancel":
			return nil, fmt.Errorf("no: %w", simplequeue.Cancel(nil))
		case "complete":
			return nil, simplequeue.Complete()
		case "critical":
			return nil, simplequeue.Critical(errors.New("x"))
		case "defer":
			if n <= 5 {
				return nil, simplequeue.RescheduleAfter(time.Millisecond)
			}
		case "retry":
			return nil, errors.New("broke")
		case "panic":
			panic("oh")
		case "goexit":
			runtime.Goexit()
		case "hostile":
			return nil, hostileError{}
		case "waits", "waits and says busy":
			if n == 1 {
				<-ctx.Done()
				if job.Kind == "waits" {
					return nil, fmt.Errorf("no licence: %w", ctx.Err())
				}
				return nil, errors.New("busy")
			}
		case "release panics":
			granted.add(job.Kind)
			return func() { released.add(job.Kind); panic("oh") }, nil
		case "release ends goroutine":
			granted.add(job.Kind)
			return func() { released.add(job.Kind); runtime.Goexit() }, nil
		}
		return grant()
	}
	process := func(_ context.Context, job *simplequeue.Job) error {
		ran.add(job.Kind)
		switch job.Kind {
		case "handler panics":
			panic("oh")
		case "handler exits":
			runtime.Goexit()
		}
		return nil
	}
	opts := simplequeue.Options{
		Handlers:   []simplequeue.Handler{permitted{simplequeue.HandlerFunc("p", process), acquire}},
		PermitWait: 30 * time.Millisecond, Backoff: backoff.Constant(time.Millisecond), MaxAttempts: 2, MaxReschedules: 3,
	}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	for kind, want := range map[string]struct {
		state        simplequeue.State
		attempt, ran int
		text         string
	}{
		"granted":                {simplequeue.StateCompleted, 1, 1, ""},
		"nil release":            {simplequeue.StateCompleted, 1, 1, ""},
		"cancel":                 {simplequeue.StateCancelled, 1, 0, "no: cancelled by its handler"},
		"complete":               {simplequeue.StateCompleted, 1, 0, ""},
		"critical":               {simplequeue.StateCritical, 1, 0, "x"},
		"defer":                  {simplequeue.StateCompleted, 1, 1, ""},
		"retry":                  {simplequeue.StateFailed, 2, 0, "broke"},
		"panic":                  {simplequeue.StateFailed, 2, 0, "panic: oh"},
		"goexit":                 {simplequeue.StateFailed, 2, 0, "handler ended its goroutine"},
		"hostile":                {simplequeue.StateFailed, 2, 0, "panic: As"},
		"waits":                  {simplequeue.StateCompleted, 1, 1, ""},
		"waits and says busy":    {simplequeue.StateCompleted, 1, 1, ""},
		"release panics":         {simplequeue.StateCompleted, 1, 1, ""},
		"release ends goroutine": {simplequeue.StateCompleted, 1, 1, ""},
		"handler panics":         {simplequeue.StateFailed, 2, 2, "panic: oh"},
		"handler exits":          {simplequeue.StateFailed, 2, 2, "handler ended its goroutine"},
	} {
		id := insert(t, q, simplequeue.NewJob{Queue: "p", Kind: kind})
		t.Run(kind, func(t *testing.T) {
			info := awaitState(t, q, id, want.state)
			if info.Attempt != want.attempt || info.ReprocessCount != 0 || ran.of(kind) != want.ran {
				t.Errorf("attempt %d, reprocess count %d, ran %d times, want %d, 0, %d",
					info.Attempt, info.ReprocessCount, ran.of(kind), want.attempt, want.ran)
			}
			if got := info.LastError(); !strings.HasPrefix(got, want.text) || want.text == "" && got != "" {
				t.Errorf("last error %q, want %q", got, want.text)
			}
			if released.of(kind) != granted.of(kind) {
				t.Errorf("released %d times, granted %d times", released.of(kind), granted.of(kind))
			}
		})
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 500) })
}

// counter counts by name.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counter) add(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
	return c.n[name]
}

func (c *counter) of(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[name]
}

// TestPermitThatIgnoresItsContext: a permit that goes on asking after its time
// is reported, its job is given back without an attempt and runs elsewhere, and
// a late grant does not run it a second time.
func TestPermitThatIgnoresItsContext(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	var calls, runs, released atomic.Int64
	acquire := func(context.Context, *simplequeue.Job) (func(), error) {
		if calls.Add(1) == 1 {
			<-answer
		}
		return func() { released.Add(1) }, nil
	}
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Handlers: []simplequeue.Handler{permitted{simplequeue.HandlerFunc("p", func(context.Context, *simplequeue.Job) error {
			runs.Add(1)
			return nil
		}), acquire}},
		PermitWait: 20 * time.Millisecond, StuckAfter: 40 * time.Millisecond,
	})
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "p", MaxAttempts: 1})
	if info := awaitState(t, q, id, simplequeue.StateCompleted); info.Attempt != 1 || info.ReprocessCount != 0 {
		t.Errorf("attempt %d, reprocess count %d, want 1 and 0", info.Attempt, info.ReprocessCount)
	}
	// The caller still holds its permit.
	eventually(t, "the caller is reported", func() bool { s := q.Stats(); return s.Stuck == 1 && s.FreePermits == 499 })
	close(answer)
	eventually(t, "the late grant is released and its permits are free", func() bool {
		return released.Load() == 2 && idle(q, 500)
	})
	if runs.Load() != 1 {
		t.Errorf("the handler ran %d times, want once", runs.Load())
	}
}

// TestDeletedJobFreesItsPermits: a row that disappears while its job runs costs
// no permit.
func TestDeletedJobFreesItsPermits(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begun, finish := make(chan struct{}, 20), make(chan struct{})
	opts := handler("q", func(context.Context, *simplequeue.Job) error {
		begun <- struct{}{}
		<-finish
		return nil
	})
	opts.GlobalPermits = 20
	q := newQueue(t, pool, opts)
	start(t, q)
	if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "q"}}, 20)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		<-begun
	}
	if _, err := pool.Exec(t.Context(), "DELETE FROM simplequeue.job_running"); err != nil {
		t.Fatal(err)
	}
	close(finish)
	eventually(t, "all permits are free", func() bool { return idle(q, 20) })
	eventually(t, "the outcomes are dropped", func() bool { return q.Stats().LeasesLost == 20 })
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
}

// TestClaimThresholdMakesClaimsLarger: nothing is claimed until so many permits
// are free, and everything is claimed in the end.
func TestClaimThresholdMakesClaimsLarger(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	opts := handler("q", func(context.Context, *simplequeue.Job) error { <-finish; return nil })
	opts.GlobalPermits, opts.ClaimThreshold = 10, 4
	q := newQueue(t, pgtest.New(t), opts)
	if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "q"}}, 31)); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "all permits are used", func() bool { return q.Stats().Claimed == 10 })
	for range 3 {
		finish <- struct{}{}
	}
	eventually(t, "three permits are free", func() bool { return q.Stats().FreePermits == 3 })
	time.Sleep(30 * time.Millisecond) // for a claim that must not be made
	if s := q.Stats(); s.Claimed != 10 || s.Claims != 1 {
		t.Errorf("%d claims of %d jobs with three permits free, want 1 of 10", s.Claims, s.Claimed)
	}
	finish <- struct{}{}
	eventually(t, "four are claimed at once", func() bool { s := q.Stats(); return s.Claimed == 14 && s.Claims == 2 })
	close(finish)
	eventually(t, "all jobs are done", func() bool { return q.Stats().Completed == 31 })
}
