package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// raw is a job with a payload of so many bytes.
func raw(queue, kind string, bytes int) simplequeue.NewJob {
	return simplequeue.NewJob{Queue: queue, Kind: kind, Raw: make([]byte, bytes), MaxAttempts: 1}
}

// TestPayloadMemoryBoundsWhatRunsAtOnce: the payloads of the jobs that run never
// exceed the payload memory, however they came here; one that is larger than all
// of it runs alone; small ones are not counted.
func TestPayloadMemoryBoundsWhatRunsAtOnce(t *testing.T) {
	t.Parallel()
	const memory = 300_000
	var inside atomic.Int64 // bytes
	var large, most, small atomic.Int64
	opts := handler("q", func(_ context.Context, job *simplequeue.Job) error {
		n := int64(len(job.Raw))
		if n <= 1024 {
			small.Add(1)
			return nil
		}
		if fmt.Sprint(n) != job.Kind {
			return simplequeue.Critical(fmt.Errorf("payload of %d bytes", n))
		}
		now := inside.Add(n)
		for m := most.Load(); now > m && n <= memory && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		if n > memory && now != n {
			large.Add(1)
		}
		time.Sleep(time.Duration(n) * time.Nanosecond * 10)
		inside.Add(-n)
		return nil
	})
	opts.PayloadMemory = memory
	q := newQueue(t, pgtest.New(t), opts)
	var jobs []simplequeue.NewJob
	for i := range 300 {
		size := []int{1024, 1025, 20_000, 90_000, 300_000}[i%5]
		if i%50 == 0 {
			size = 500_000
		}
		jobs = append(jobs, raw("q", fmt.Sprint(size), size))
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "all jobs are done", func() bool { s := q.Stats(); return s.Completed+s.DeadLettered == 300 })
	if s := q.Stats(); s.Completed != 300 || large.Load() != 0 || most.Load() > memory || most.Load() < memory/2 || small.Load() == 0 {
		t.Errorf("%d of 300 completed, %d times one larger than all had company, the others were %d of %d bytes at most",
			s.Completed, large.Load(), most.Load(), memory)
	}
	eventually(t, "all memory is free", func() bool { return q.Stats().PayloadBytes == 0 && idle(q, 500) })
}

// TestWaitForPayloadMemoryUsesNoAttempt: a job that waits too long is given
// back, again and again, and runs as if nothing had been.
func TestWaitForPayloadMemoryUsesNoAttempt(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	opts := handler("q", func(context.Context, *simplequeue.Job) error { <-finish; return nil })
	opts.PayloadMemory, opts.PermitWait = 10_000, 20*time.Millisecond
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	insert(t, q, raw("q", "", 10_000))
	eventually(t, "the first one runs", func() bool { return q.Stats().Queues["q"].Running == 1 && q.Stats().PayloadBytes == 10_000 })
	second := insert(t, q, raw("q", "", 2000))
	eventually(t, "the second is given back", func() bool { return q.Stats().GivenBack >= 3 })
	close(finish)
	if info := awaitState(t, q, second, simplequeue.StateCompleted); info.Attempt != 1 || info.ReprocessCount != 0 || len(info.Errors) != 0 {
		t.Errorf("attempt %d, reprocess count %d, errors %v, want 1, 0, none", info.Attempt, info.ReprocessCount, info.Errors)
	}
	eventually(t, "all memory is free", func() bool { return q.Stats().PayloadBytes == 0 })
}

// TestPayloadMemoryDoesNotLeak: it is free again whatever the handler does, and
// in use for as long as a stuck handler has its payload.
func TestPayloadMemoryDoesNotLeak(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	deny := permitted{
		simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
			switch job.Kind {
			case "panics":
				panic("oh")
			case "exits":
				runtime.Goexit()
			case "fails":
				return errors.New("broke")
			case "stuck":
				<-finish
			}
			return nil
		}),
		func(_ context.Context, job *simplequeue.Job) (func(), error) {
			if len(job.Raw) != 5000 {
				return nil, simplequeue.Critical(errors.New("the permit does not see the payload"))
			}
			switch job.Kind {
			case "permit panics":
				panic("oh")
			case "not permitted":
				return nil, simplequeue.Cancel(nil)
			}
			return nil, nil
		},
	}
	opts := simplequeue.Options{
		Handlers: []simplequeue.Handler{deny, simplequeue.NewMux("mux")}, PayloadMemory: 10_000,
		StuckAfter: 50 * time.Millisecond, Timeout: 100 * time.Millisecond,
	}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	stuck := insert(t, q, raw("q", "stuck", 5000))
	for kind, want := range map[string]simplequeue.State{
		"panics": simplequeue.StateFailed, "exits": simplequeue.StateFailed, "fails": simplequeue.StateFailed,
		"permit panics": simplequeue.StateFailed, "not permitted": simplequeue.StateCancelled, "fine": simplequeue.StateCompleted,
	} {
		id := insert(t, q, raw("q", kind, 5000))
		awaitState(t, q, id, want)
	}
	awaitState(t, q, insert(t, q, raw("mux", "unknown", 5000)), simplequeue.StateWaiting)
	awaitState(t, q, stuck, simplequeue.StateFailed)
	eventually(t, "only the stuck handler has memory", func() bool { return q.Stats().PayloadBytes == 5000 })
	close(finish)
	eventually(t, "all memory is free", func() bool { return q.Stats().PayloadBytes == 0 && idle(q, 500) })
}

// TestWaitForPayloadMemoryEnds: with a cancel of the job, and with a stop.
func TestWaitForPayloadMemoryEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running := make(chan struct{}, 1)
	opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
		running <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	opts.PayloadMemory, opts.PermitWait, opts.Stop.Drain = 10_000, time.Hour, briefStop.Drain
	q := newQueue(t, pool, opts)
	stop := start(t, q)
	first := insert(t, q, raw("q", "", 10_000))
	<-running
	ids := []uuid.UUID{insert(t, q, raw("q", "", 10_000)), insert(t, q, raw("q", "", 10_000))}
	eventually(t, "two wait", func() bool { return q.Stats().Running == 3 })
	if _, err := q.Cancel(t.Context(), ids[0], "no more"); err != nil {
		t.Fatal(err)
	}
	if info := awaitState(t, q, ids[0], simplequeue.StateCancelled); info.Reason != "no more" {
		t.Errorf("cancelled because %q", info.Reason)
	}
	if err := stopTimed(t, stop); err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, id := range []uuid.UUID{first, ids[1]} {
		if info := awaitState(t, q, id, simplequeue.StatePending); info.Attempt != 0 {
			t.Errorf("given back with attempt %d, want 0", info.Attempt)
		}
	}
	if n := q.Stats().PayloadBytes; n != 0 {
		t.Errorf("%d bytes in use after the stop", n)
	}
}

// TestLargePayloadsLeaveSmallOnesTheirSpeed: queues of large payloads for which
// there is no memory keep neither the permits nor the claims from a queue of
// small ones, nor do they turn in circles.
func TestLargePayloadsLeaveSmallOnesTheirSpeed(t *testing.T) {
	t.Parallel()
	heavy := []string{"h1", "h2", "h3", "h4", "h5"}
	finish := make(chan struct{})
	opts := simplequeue.Options{
		Handlers: []simplequeue.Handler{
			simplequeue.ServeQueues(simplequeue.HandlerFunc("", func(context.Context, *simplequeue.Job) error { <-finish; return nil }), heavy...),
			simplequeue.HandlerFunc("light", nothing),
		},
		GlobalPermits: 100, QueuePermits: 100, PayloadMemory: 20_000,
		PermitWait: 20 * time.Second, // far longer than the light jobs may take
	}
	q := newQueue(t, pgtest.New(t), opts)
	const each = 100
	for _, queue := range heavy {
		if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{raw(queue, "", 10_000)}, each)); err != nil {
			t.Fatal(err)
		}
	}
	start(t, q)
	eventually(t, "memory is used up", func() bool { return q.Stats().PayloadBytes == 20_000 })
	began := time.Now()
	for range 10 {
		if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "light"}}, 50)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the light jobs are done", func() bool { return q.Stats().Completed == 500 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the light jobs took %v: they waited for the heavy ones", took)
	}
	time.Sleep(100 * time.Millisecond) // for claims that must not be made
	s := q.Stats()
	for _, queue := range heavy {
		if n := s.Queues[queue].InFlight; n > 10 {
			t.Errorf("%d jobs of %s are claimed where none can run", n, queue)
		}
	}
	if s.GivenBack > 5*each {
		t.Errorf("%d jobs were given back: they turn in circles", s.GivenBack)
	}
	close(finish)
	eventually(t, "all are done", func() bool { return q.Stats().Completed == 500+5*each })
	eventually(t, "all memory is free", func() bool { return q.Stats().PayloadBytes == 0 && idle(q, 100) })
}
