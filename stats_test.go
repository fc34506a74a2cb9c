package simplequeue_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestStatsAddUp: every claimed job is counted once, by what became of it.
func TestStatsAddUp(t *testing.T) {
	t.Parallel()
	mux := simplequeue.NewMux("q").
		HandleFunc("ok", nothing).
		HandleFunc("fails", func(context.Context, *simplequeue.Job) error { return errors.New("x") }).
		HandleFunc("critical", func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(nil) }).
		HandleFunc("cancels", func(context.Context, *simplequeue.Job) error { return simplequeue.Cancel(nil) }).
		HandleFunc("reschedules", func(_ context.Context, job *simplequeue.Job) error {
			if job.ReprocessCount < 2 {
				return simplequeue.RescheduleAfter(0)
			}
			return nil
		})
	var asked counter
	mux.Handle("deferred", permitted{simplequeue.HandlerFunc("", nothing), func(_ context.Context, job *simplequeue.Job) (func(), error) {
		if asked.add(job.ID.String()) == 1 {
			return nil, simplequeue.RescheduleAfter(0)
		}
		return nil, nil
	}})
	mux.Handle("waits", permitted{simplequeue.HandlerFunc("", nothing), func(ctx context.Context, job *simplequeue.Job) (func(), error) {
		if asked.add(job.ID.String()) == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, nil
	}})
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Handlers: []simplequeue.Handler{mux}, Backoff: backoff.Constant(0), PermitWait: 5 * time.Millisecond, GlobalPermits: 50,
	})
	start(t, q)
	const n = 10
	var jobs []simplequeue.NewJob
	for _, kind := range []string{"ok", "fails", "critical", "cancels", "reschedules", "deferred", "waits", "unknown"} {
		jobs = append(jobs, slices.Repeat([]simplequeue.NewJob{{Queue: "q", Kind: kind}}, n)...)
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all jobs have ended or are parked", func() bool {
		s := q.Stats()
		return s.Completed+s.DeadLettered+s.Parked == int64(len(jobs)) && idle(q, 50)
	})
	got := q.Stats()
	want := simplequeue.Stats{
		FreePermits: 50, Completed: 4 * n, Retried: 2 * n, Rescheduled: 2 * n, Deferred: n, GivenBack: n, Parked: n, DeadLettered: 3 * n,
	}
	want.Claimed = want.Completed + want.Retried + want.Rescheduled + want.Deferred + want.GivenBack + want.Parked + want.DeadLettered
	if got.Claims < 1 || got.Claims > got.Claimed {
		t.Errorf("%d claims of %d jobs", got.Claims, got.Claimed)
	}
	if queue := got.Queues["q"]; queue != (simplequeue.QueueStats{Permits: 100}) {
		t.Errorf("queue %+v, want nothing in flight of 100", queue)
	}
	got.Claims, got.Queues = 0, nil
	if !equalStats(got, want) {
		t.Errorf("stats\n%+v, want\n%+v", got, want)
	}
}

func equalStats(a, b simplequeue.Stats) bool {
	a.Queues, b.Queues = nil, nil
	return a.Running == b.Running && a.Stuck == b.Stuck && a.FreePermits == b.FreePermits && a.Claimed == b.Claimed &&
		a.Completed == b.Completed && a.Retried == b.Retried && a.Rescheduled == b.Rescheduled && a.Deferred == b.Deferred &&
		a.GivenBack == b.GivenBack && a.Parked == b.Parked && a.DeadLettered == b.DeadLettered && a.LeasesLost == b.LeasesLost &&
		a.Reaped == b.Reaped
}

// TestHealthTurnsRedAndBack: a queue that does not run is not well; one that
// runs is, until the database is gone for some seconds, and again soon after.
func TestHealthTurnsRedAndBack(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	opts := quick(simplequeue.HandlerFunc("q", nothing))
	opts.HeartbeatInterval = 500 * time.Millisecond
	q := newQueue(t, pgtest.Pool(t, proxy.URL(), 4), opts)
	if h := q.Health(); h.OK || !slices.Equal(h.Problems, []string{"not running"}) {
		t.Errorf("before Run: %+v", h)
	}
	stop := start(t, q)
	eventually(t, "it is well", func() bool { return q.Health().OK })
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
	proxy.Cut()
	has := func(loop string) bool {
		return slices.ContainsFunc(q.Health().Problems, func(p string) bool { return strings.HasPrefix(p, loop+" fails since") })
	}
	eventually(t, "poller, promoter and listener are in trouble", func() bool {
		return has("poller") && has("promoter") && has("listener") && !q.Health().OK
	})
	proxy.Heal()
	eventually(t, "it is well again", func() bool { return q.Health().OK })
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if h := q.Health(); h.OK {
		t.Errorf("after Run: %+v", h)
	}
}
