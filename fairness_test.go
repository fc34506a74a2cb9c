package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// turns notes in which order jobs of which fairness key ran.
type turns struct {
	mu   sync.Mutex
	keys []string
	ran  map[string]int
	last map[string]int // position of a key's last job
	at   map[string]time.Time
}

func (r *turns) handler(queue string) simplequeue.Handler {
	r.ran, r.last, r.at = map[string]int{}, map[string]int{}, map[string]time.Time{}
	return simplequeue.HandlerFunc(queue, func(_ context.Context, job *simplequeue.Job) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ran[job.FairnessKey]++
		r.last[job.FairnessKey], r.at[job.FairnessKey] = len(r.keys), time.Now()
		r.keys = append(r.keys, job.FairnessKey)
		return nil
	})
}

func insertMany(t *testing.T, q *simplequeue.SimpleQueue, n int, job simplequeue.NewJob) []uuid.UUID {
	t.Helper()
	jobs := make([]simplequeue.NewJob, n)
	for i := range jobs {
		jobs[i] = job
	}
	list, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	return idsOf(list)
}

// The backlog of one key does not delay those of others, which come later and
// are small: in two workers they are through after about as many jobs as if they
// were alone, and a window; and whoever lets jobs in reads no more of the backlog
// than that. With SIMPLEQUEUE_TEST_LONG=1 the backlog is a million jobs, else
// 2,000.
func TestABacklogDelaysNoOtherKey(t *testing.T) {
	t.Parallel()
	const small, each = 100, 10
	backlog := 2_000
	if os.Getenv(longVariable) != "" {
		backlog = 1_000_000
	}
	through := func(backlog int) (jobs, read int, took time.Duration) {
		pool := pgtest.New(t)
		r := &turns{}
		opts := simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q")}}
		q := newQueue(t, pool, opts)
		for left := backlog; left > 0; left -= min(left, 50_000) {
			insertMany(t, q, min(left, 50_000), simplequeue.NewJob{Queue: "q", FairnessKey: "big"})
		}
		var few []simplequeue.NewJob
		for i := range small * each {
			few = append(few, simplequeue.NewJob{Queue: "q", FairnessKey: fmt.Sprint("small", i/each)})
		}
		if _, err := q.InsertMany(t.Context(), few); err != nil {
			t.Fatal(err)
		}
		before := rowsRead(t, pool, "job_gated")
		began := time.Now()
		stops := []func() error{start(t, q), start(t, newQueue(t, pool, opts))}
		var lastAt time.Time
		eventually(t, "the small keys are through", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			done := 0
			for key, n := range r.ran {
				if key != "big" {
					done += n
					jobs, lastAt = max(jobs, r.last[key]+1), later(lastAt, r.at[key])
				}
			}
			return done == small*each
		})
		for _, stop := range stops {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
		return jobs, (rowsRead(t, pool, "job_gated") - before) / len(r.keys), lastAt.Sub(began)
	}
	jobs, read, took := through(backlog)
	_, readAlone, alone := through(0)
	t.Logf("%d jobs of %d keys were through after %d jobs, %d rows read for each, and %v beside a backlog of %d, after %d rows and %v alone",
		small*each, small, jobs, read, took, backlog, readAlone, alone)
	// A window was let in before they came, and the backlog has its own share.
	if most := small*each + each + 200 + 300; jobs > most {
		t.Errorf("the small keys were through after %d jobs, want at most %d", jobs, most)
	}
	if read > readAlone+3 {
		t.Errorf("%d rows of the line were read for each job, and %d without a backlog", read, readAlone)
	}
	if backlog > 2_000 && took > 3*alone+2*time.Second {
		t.Errorf("the small keys were through after %v, and after %v without a backlog", took, alone)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// A key's share follows its weight.
func TestFairWeights(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := &turns{}
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q")}})
	if err := q.SetFairWeight(t.Context(), "q", "heavy", 2); err != nil {
		t.Fatal(err)
	}
	if err := q.SetFairWeight(t.Context(), "q", "heavy", 3); err != nil {
		t.Fatal(err)
	}
	insertMany(t, q, 800, simplequeue.NewJob{Queue: "q", FairnessKey: "light"})
	insertMany(t, q, 800, simplequeue.NewJob{Queue: "q", FairnessKey: "heavy"})
	start(t, q)
	eventually(t, "half has run", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.keys) >= 800
	})
	r.mu.Lock()
	heavy := 0
	for _, key := range r.keys[:800] {
		if key == "heavy" {
			heavy++
		}
	}
	r.mu.Unlock()
	if heavy < 550 || heavy > 650 {
		t.Errorf("%d of the first 800 jobs were of the key with weight 3, want about 600", heavy)
	}
	awaitCompleted(t, q, "q", 1600)
	for key, weight := range map[string]int{"": 1, "x": 0, "y": 1001, strings.Repeat("z", 513): 1} {
		var invalid *simplequeue.InvalidOptionError
		if err := q.SetFairWeight(t.Context(), "q", key, weight); !errors.As(err, &invalid) {
			t.Errorf("weight %d of %q: %v", weight, key, err)
		}
	}
}

// Fairness goes with everything else: order, delays, unique keys, holds, cancel.
func TestFairnessWithOrderAndHold(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })}})
	var want []uuid.UUID
	for i := range 20 {
		want = append(want, insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", FairnessKey: fmt.Sprint(i % 3), UniqueKey: fmt.Sprint(i)}))
	}
	delayed := insert(t, q, simplequeue.NewJob{Queue: "q", FairnessKey: "0", Delay: 300 * time.Millisecond})
	held := insert(t, q, simplequeue.NewJob{Queue: "q", FairnessKey: "0", Hold: time.Hour})
	cancelled := insert(t, q, simplequeue.NewJob{Queue: "q", FairnessKey: "0", Delay: time.Hour})
	if info := get(t, q, delayed); info.State != simplequeue.StateWaiting || info.Reason != `until its turn in the queue "q"` || info.FairnessKey != "0" {
		t.Errorf("%s, %q, key %q", info.State, info.Reason, info.FairnessKey)
	}
	if _, err := q.Cancel(t.Context(), cancelled, ""); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	awaitCompleted(t, q, "q", 21)
	if s := state(t, q, held); s != simplequeue.StateWaiting {
		t.Errorf("the held job is %s", s)
	}
	if done, err := q.CommitHeld(t.Context(), held); err != nil || len(done) != 1 {
		t.Errorf("committed %v, %v", done, err)
	}
	awaitCompleted(t, q, "q", 22)
	ran := r.of("k")
	for i, id := range want {
		if i >= len(ran) || ran[i] != id {
			t.Fatalf("ran as %v, inserted as %v", ran, want)
		}
	}
}

// Jobs that come to the fair gate from order keys, many at once, get places one
// after the other, as those that come there at once.
func TestFairSharesBehindOrderKeys(t *testing.T) {
	t.Parallel()
	const each = 600
	pool := pgtest.New(t)
	var mu sync.Mutex
	var ran []string
	opts := handler("q", func(_ context.Context, job *simplequeue.Job) error {
		mu.Lock()
		defer mu.Unlock()
		ran = append(ran, job.FairnessKey)
		return nil
	})
	opts.GlobalPermits = 1
	q := newQueue(t, pool, opts)
	var jobs []simplequeue.NewJob
	for i := range each {
		jobs = append(jobs, simplequeue.NewJob{Queue: "q", OrderKey: fmt.Sprint(i), FairnessKey: "ordered"}, simplequeue.NewJob{Queue: "q", FairnessKey: "plain"})
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	awaitCompleted(t, q, "q", 2*each)
	mu.Lock()
	defer mu.Unlock()
	plain := 0
	for _, key := range ran[:each] {
		if key == "plain" {
			plain++
		}
	}
	if plain < each*2/5 || plain > each*3/5 {
		t.Errorf("of the first %d runs %d were of the plain key, want about half", each, plain)
	}
}
