package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/reaper"
)

// claimOne claims one job that must be there.
func claimOne(t *testing.T, q *simplequeue.SimpleQueue, queue string) *simplequeue.Lease {
	t.Helper()
	list, err := q.Claim(t.Context(), queue, 1, time.Minute)
	if err != nil || len(list) != 1 {
		t.Fatalf("Claim: %d jobs, %v", len(list), err)
	}
	return list[0]
}

// A job claimed by hand ends as it is settled, like one that a handler ran.
func TestSettleByHand(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	for name, c := range map[string]struct {
		settle  func(l *simplequeue.Lease) error
		state   simplequeue.State
		attempt int
		reason  string
	}{
		"complete":   {func(l *simplequeue.Lease) error { return l.Settle(t.Context(), nil) }, simplequeue.StateCompleted, 1, ""},
		"fail":       {func(l *simplequeue.Lease) error { return l.Settle(t.Context(), errors.New("no")) }, simplequeue.StateWaiting, 1, "retry"},
		"retry":      {func(l *simplequeue.Lease) error { return l.Settle(t.Context(), simplequeue.RetryAfter(time.Hour, nil)) }, simplequeue.StateWaiting, 1, "retry"},
		"reschedule": {func(l *simplequeue.Lease) error { return l.Settle(t.Context(), simplequeue.RescheduleAfter(time.Hour)) }, simplequeue.StateWaiting, 0, "rescheduled"},
		"critical":   {func(l *simplequeue.Lease) error { return l.Settle(t.Context(), simplequeue.Critical(nil)) }, simplequeue.StateCritical, 1, "critical failure"},
		"cancel":     {func(l *simplequeue.Lease) error { return l.Settle(t.Context(), simplequeue.Cancel(nil)) }, simplequeue.StateCancelled, 1, "cancelled by its handler"},
		"give back":  {func(l *simplequeue.Lease) error { return l.GiveBack(t.Context()) }, simplequeue.StatePending, 0, ""},
	} {
		id := insert(t, q, simplequeue.NewJob{Queue: name, Payload: strings.Repeat("p", 2000), UniqueKey: "k"})
		l := claimOne(t, q, name)
		if l.Job.ID != id || l.Job.Attempt != 1 || len(l.Job.Payload) != 2002 {
			t.Errorf("%s: claimed %v, attempt %d, payload of %d bytes", name, l.Job.ID, l.Job.Attempt, len(l.Job.Payload))
		}
		if got := state(t, q, id); got != simplequeue.StateRunning {
			t.Errorf("%s: claimed, the job is %s", name, got)
		}
		if more, err := q.Claim(t.Context(), name, 10, time.Minute); err != nil || len(more) != 0 {
			t.Errorf("%s: claimed twice: %d, %v", name, len(more), err)
		}
		if err := l.Extend(t.Context()); err != nil {
			t.Errorf("%s: Extend: %v", name, err)
		}
		if err := c.settle(l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		info := get(t, q, id)
		if info.State != c.state || info.Attempt != c.attempt || info.Reason != c.reason {
			t.Errorf("%s: %s, attempt %d, reason %q", name, info.State, info.Attempt, info.Reason)
		}
		for _, err := range []error{c.settle(l), l.Extend(t.Context()), l.GiveBack(t.Context())} {
			if !errors.Is(err, simplequeue.ErrLeaseLost) {
				t.Errorf("%s: settled again: %v", name, err)
			}
		}
	}
	if n := queryOne[int](t, pool, "SELECT (SELECT count(*) FROM simplequeue.job_lease) + (SELECT count(*) FROM simplequeue.job_running)"); n != 0 {
		t.Errorf("%d rows are left of the claims", n)
	}
}

// A lease that ends takes the job away: it is reaped, another has it, and the
// first owner can change nothing.
func TestALeaseByHandEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	r, err := reaper.New(pool, reaper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sweep := func() int {
		t.Helper()
		result, err := r.Once(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return result.Reaped()
	}
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	long := claimOne(t, q, "a")
	if n := sweep(); n != 0 {
		t.Fatal("a job was taken from a lease of a minute")
	}
	if err := long.GiveBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := q.Claim(t.Context(), "a", 1, 300*time.Millisecond)
	if err != nil || len(list) != 1 {
		t.Fatalf("Claim: %d, %v", len(list), err)
	}
	old := list[0]
	for range 4 {
		if err := old.Extend(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := old.Extend(t.Context()); err != nil {
		t.Fatalf("extended every 100 ms, a lease of 300 ms: %v", err)
	}
	eventually(t, "the lease ends", func() bool { return sweep() == 1 })
	next := claimOne(t, q, "a") // a suspect now
	if next.Job.ID != id || next.Job.Attempt != 2 || next.Job.CrashCount != 1 {
		t.Errorf("claimed again: attempt %d, crashes %d", next.Job.Attempt, next.Job.CrashCount)
	}
	for what, err := range map[string]error{
		"Extend": old.Extend(t.Context()), "Settle": old.Settle(t.Context(), nil), "GiveBack": old.GiveBack(t.Context()),
	} {
		if !errors.Is(err, simplequeue.ErrLeaseLost) {
			t.Errorf("%s of the old lease: %v", what, err)
		}
	}
	if got := state(t, q, id); got != simplequeue.StateRunning {
		t.Errorf("the job is %s", got)
	}
	if err := next.Settle(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// Claims by hand, beside workers and each other, take each job once and in
// order; of a paused queue they take none.
func TestClaimByHandTakesEachJobOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 10)
	var mu sync.Mutex
	times := map[uuid.UUID]int{}
	seen := func(id uuid.UUID) { mu.Lock(); defer mu.Unlock(); times[id]++ }
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error { seen(job.ID); return nil }))
	jobs := make([]simplequeue.NewJob, 600)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Priority: 9 - i%10, Payload: i}
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	if err := q.Pause(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	if list, err := q.Claim(t.Context(), "a", 5, time.Minute); err != nil || len(list) != 0 {
		t.Errorf("Claim of a paused queue: %d, %v", len(list), err)
	}
	if err := q.Resume(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	ordered, err := q.Claim(t.Context(), "a", 61, time.Minute)
	if err != nil || len(ordered) != 61 {
		t.Fatalf("Claim: %d, %v", len(ordered), err)
	}
	for i, l := range ordered {
		if want := i / 60; l.Job.Priority != want {
			t.Errorf("job %d has priority %d, want %d", i, l.Job.Priority, want)
		}
		if i > 0 && i < 60 && string(ordered[i-1].Job.Payload) >= string(l.Job.Payload) && len(l.Job.Payload) == len(ordered[i-1].Job.Payload) {
			t.Errorf("%s after %s", l.Job.Payload, ordered[i-1].Job.Payload)
		}
		seen(l.Job.ID)
		if err := l.Settle(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}
	start(t, q)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for {
				list, err := q.Claim(context.Background(), "a", 20, time.Minute)
				if err != nil {
					t.Errorf("Claim: %v", err)
				}
				if len(list) == 0 {
					return
				}
				for _, l := range list {
					seen(l.Job.ID)
					if err := l.Settle(context.Background(), nil); err != nil {
						t.Errorf("Settle: %v", err)
					}
				}
			}
		})
	}
	all.Wait()
	eventually(t, "all are completed", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == 600 })
	for id, n := range times {
		if n != 1 {
			t.Errorf("job %v ran %d times", id, n)
		}
	}
}

// A cancel reaches whoever holds the job when they extend, and decides.
func TestCancelOfAJobClaimedByHand(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	l := claimOne(t, q, "a")
	if s, err := q.Cancel(t.Context(), id, "enough"); err != nil || s != simplequeue.StateCancelling {
		t.Fatalf("Cancel: %s, %v", s, err)
	}
	if err := l.Extend(t.Context()); !errors.Is(err, simplequeue.ErrCancelled) || !strings.Contains(err.Error(), "enough") {
		t.Errorf("Extend: %v", err)
	}
	if err := l.Settle(t.Context(), errors.New("stopped")); err != nil {
		t.Error(err)
	}
	if info := get(t, q, id); info.State != simplequeue.StateCancelled || info.Reason != "enough" {
		t.Errorf("the job is %s, %q", info.State, info.Reason)
	}
	for _, err := range []error{
		second(q.Claim(t.Context(), "", 1, time.Minute)), second(q.Claim(t.Context(), "a", 0, time.Minute)),
		second(q.Claim(t.Context(), "a", 1, time.Millisecond)), second(q.Claim(t.Context(), "a", 1, 48*time.Hour)),
	} {
		if err == nil {
			t.Error("a claim that makes no sense was not refused")
		}
	}
}

// A hundred claimers at once, each on a connection of its own, take what they ask
// for beside each other: nobody waits for another, nobody walks over the rows of
// the others and comes back with less, and no job is taken twice.
func TestAHundredClaimersAtOnce(t *testing.T) {
	t.Parallel()
	const claimers, each, rounds = 100, 20, 3
	server := pgtest.OwnServer(t, nil)
	pgtest.Migrated(t, server.URL())
	pool := pgtest.Pool(t, server.URL(), claimers)
	conns := make([]*pgxpool.Conn, claimers) // a claim's time is not for connecting
	for i := range conns {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	for _, conn := range conns {
		conn.Release()
	}
	q := newQueue(t, pool, simplequeue.Options{})
	atOnce := func(claim func()) {
		var wg sync.WaitGroup
		for range claimers {
			wg.Go(claim)
		}
		wg.Wait()
	}
	atOnce(func() { _, _ = q.Claim(t.Context(), "none", 1, time.Hour) }) // nor for its first plan
	if _, err := q.InsertMany(t.Context(), repeat(claimers*each*rounds, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Fatal(err)
	}
	var (
		mu   sync.Mutex
		jobs = map[uuid.UUID]bool{}
	)
	for range rounds {
		atOnce(func() {
			list, err := q.Claim(t.Context(), "a", each, time.Hour)
			if err != nil || len(list) != each {
				t.Errorf("claimed %d jobs, %v, want %d", len(list), err, each)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, l := range list {
				jobs[l.Job.ID] = true
			}
		})
	}
	if len(jobs) != claimers*each*rounds {
		t.Errorf("%d jobs are claimed, want %d", len(jobs), claimers*each*rounds)
	}
}
