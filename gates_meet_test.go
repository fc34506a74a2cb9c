package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
)

// How order, shares and holds meet everything else that can be done to a job.

// onceBad is a handler that notes its runs; the first run of a job whose raw
// payload is "bad" ends it as critical.
func onceBad(r *runs) simplequeue.Handler {
	return r.handler("q", func(job *simplequeue.Job) error {
		if string(job.Raw) == "bad" && len(job.Errors) == 0 {
			return simplequeue.Critical(errors.New("no"))
		}
		return nil
	})
}

// A dead job that keeps its key closed runs again at its old place.
func TestRedriveOfTheJobThatClosesItsKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{onceBad(r)}, Queues: map[string]simplequeue.QueueOptions{"q": {BlockDead: true}},
	})
	start(t, q)
	a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Raw: []byte("bad")})
	b := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	awaitState(t, q, a, simplequeue.StateCritical)
	if s := state(t, q, b); s != simplequeue.StateWaiting {
		t.Errorf("behind a dead job: %s", s)
	}
	// A program that knows nothing of the queue's options redrives.
	other := newQueue(t, pool, simplequeue.Options{})
	if done, err := other.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{a}}, simplequeue.RedriveOptions{}); err != nil || len(done.IDs) != 1 {
		t.Fatalf("redriven: %+v, %v", done, err)
	}
	awaitCompleted(t, q, "q", 2)
	if got := r.of("k"); !slices.Equal(got, []uuid.UUID{a, a, b}) {
		t.Errorf("ran as %v of %v, %v", got, a, b)
	}
	if err := q.ReleaseKey(t.Context(), "q", "k"); !errors.Is(err, simplequeue.ErrNotFound) {
		t.Errorf("release of a key that is open again: %v", err)
	}
	awaitNoGates(t, pool)
}

// Any other job that is made live again lines up behind those that are, several
// in the order of their ids: whether it died, was cancelled and not even moved
// to the dead letters yet, or completed and is copied.
func TestRedriveAndReplayLineUpAnew(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	inserter := newQueue(t, pool, simplequeue.Options{})
	one := func(raw string) uuid.UUID {
		return insert(t, inserter, simplequeue.NewJob{Queue: "q", OrderKey: "k", FairnessKey: "f", Raw: []byte(raw), MaxAttempts: 5})
	}
	redrive := func(n int, f simplequeue.Filter) []uuid.UUID {
		t.Helper()
		done, err := inserter.Redrive(t.Context(), f, simplequeue.RedriveOptions{})
		if err != nil || len(done.IDs) != n {
			t.Fatalf("redriven: %+v, %v, want %d", done, err, n)
		}
		return done.IDs
	}
	a := one("")
	if _, err := inserter.Cancel(t.Context(), a, ""); err != nil {
		t.Fatal(err)
	}
	redrive(1, simplequeue.Filter{IDs: []uuid.UUID{a}})
	if info := get(t, inserter, a); info.State != simplequeue.StateWaiting || info.OrderKey != "k" || !strings.Contains(info.Reason, "order key") {
		t.Errorf("%s, %q, key %q", info.State, info.Reason, info.OrderKey)
	}

	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{onceBad(r)}})
	stop := start(t, q)
	b, c := one("bad"), one("bad")
	awaitState(t, q, a, simplequeue.StateCompleted)
	awaitState(t, q, b, simplequeue.StateCritical)
	awaitState(t, q, c, simplequeue.StateCritical)
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	d := one("")
	redrive(2, simplequeue.Filter{OrderKey: "k", States: []simplequeue.State{simplequeue.StateCritical}})
	done, err := inserter.Replay(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{a}}, simplequeue.RedriveOptions{})
	if err != nil || len(done.IDs) != 1 {
		t.Fatalf("replayed: %+v, %v", done, err)
	}
	copied := done.IDs[0]
	if info := get(t, inserter, copied); info.State != simplequeue.StateWaiting || info.OrderKey != "k" || info.FairnessKey != "f" || info.ReplayOf != a {
		t.Errorf("the copy: %s, keys %q and %q, of %v", info.State, info.OrderKey, info.FairnessKey, info.ReplayOf)
	}
	e := one("")
	r2 := newRuns()
	again := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{onceBad(r2)}})
	start(t, again)
	awaitCompleted(t, again, "q", 6)
	if got, want := r2.of("k"), []uuid.UUID{d, b, c, copied, e}; !slices.Equal(got, want) {
		t.Errorf("ran as\n%v, want\n%v", got, want)
	}
}

// A key that a dead job keeps closed stays closed when that job is purged: only
// ReleaseKey opens it then.
func TestPurgeLeavesAKeyClosed(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{onceBad(newRuns())}, Queues: map[string]simplequeue.QueueOptions{"q": {BlockDead: true}},
	})
	start(t, q)
	a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Raw: []byte("bad")})
	b := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	awaitState(t, q, a, simplequeue.StateCritical)
	eventually(t, "the worker is registered", func() bool { return countRows(t, pool, "job_worker") == 1 })
	closed := func(sentence string) {
		t.Helper()
		why, err := q.Why(t.Context(), b)
		if err != nil || len(why) != 1 || why[0].Code != simplequeue.FindingGate || why[0].Job != a || !strings.Contains(why[0].Text, sentence) {
			t.Errorf("why: %+v, %v, want that a job %q", why, err, sentence)
		}
	}
	closed(`which is critical_failure, has closed the order key "k" at `)
	eventually(t, "the dead job is purged", func() bool {
		n, err := q.Purge(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{a}})
		return err == nil && n == 1
	})
	if list, err := q.BlockedKeys(t.Context(), "q"); err != nil || len(list) != 1 || list[0].JobID != a {
		t.Errorf("blocked: %+v, %v", list, err)
	}
	closed(`of which nothing is kept, has closed the order key "k" at `)
	if err := q.ReleaseKey(t.Context(), "q", "k"); err != nil {
		t.Fatal(err)
	}
	awaitState(t, q, b, simplequeue.StateCompleted)
	awaitNoGates(t, pool)
}

// A change leaves a job where it waits: at its gate, which it does not slip
// through, or held. A new run time counts from there on.
func TestChangeAtAGate(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	started := map[uuid.UUID]time.Time{}
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(job *simplequeue.Job) error {
		started[job.ID] = time.Now() // one at a time
		if string(job.Payload) != `"new"` {
			t.Errorf("%v runs with payload %s", job.ID, job.Payload)
		}
		return nil
	})}})
	one := func(job simplequeue.NewJob) uuid.UUID {
		job.Queue, job.OrderKey, job.Payload = "q", "k", "old"
		return insert(t, q, job)
	}
	a, b, c, d := one(simplequeue.NewJob{}), one(simplequeue.NewJob{}), one(simplequeue.NewJob{Hold: time.Hour}), one(simplequeue.NewJob{Delay: time.Hour})
	begun := time.Now()
	for id, change := range map[uuid.UUID]simplequeue.Change{
		a: {Payload: "new", Priority: ptr(3)},
		b: {Payload: "new", Delay: 300 * time.Millisecond},
		c: {Payload: strings.Repeat("x", 2000)},
		d: {Payload: "new", RunAt: time.Now().Add(-time.Hour)},
	} {
		if err := q.Change(t.Context(), id, change); err != nil {
			t.Fatal(err)
		}
		if info := get(t, q, id); info.State != simplequeue.StateWaiting || (info.Reason == "held") != (id == c) || !info.RunAt.IsZero() {
			t.Errorf("a changed job is %s, %q, due %v", info.State, info.Reason, info.RunAt)
		}
	}
	if err := q.Change(t.Context(), c, simplequeue.Change{Payload: "new", Delay: 600 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if done, err := q.CommitHeld(t.Context(), c); err != nil || len(done) != 1 {
		t.Fatalf("committed %v, %v", done, err)
	}
	start(t, q)
	awaitCompleted(t, q, "q", 4)
	if got, want := r.of("k"), []uuid.UUID{a, b, c, d}; !slices.Equal(got, want) {
		t.Errorf("ran as\n%v, want\n%v", got, want)
	}
	if started[b].Sub(begun) < 300*time.Millisecond || started[c].Sub(begun) < 600*time.Millisecond || started[d].Sub(begun) > 30*time.Second {
		t.Errorf("ran after %v, %v, %v", started[b].Sub(begun), started[c].Sub(begun), started[d].Sub(begun))
	}
	awaitNoGates(t, pool)
}

// The first of a key, once let in, keeps it when it is put off by a change.
func TestChangeOfTheFirstOfAKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("other", nothing)}})
	start(t, q)
	a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	b := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	awaitState(t, q, a, simplequeue.StatePending)
	if err := q.Change(t.Context(), a, simplequeue.Change{Delay: 200 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	r := newRuns()
	worker := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })}})
	start(t, worker)
	awaitCompleted(t, q, "q", 2)
	if got := r.of("k"); !slices.Equal(got, []uuid.UUID{a, b}) {
		t.Errorf("ran as %v of %v, %v", got, a, b)
	}
}

// A commit of held jobs misses none that is being changed at that moment.
func TestCommitHeldWhileJobsAreChanged(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	for round := range 40 {
		list, err := q.InsertMany(t.Context(), []simplequeue.NewJob{
			{Queue: "q", Hold: time.Hour}, {Queue: "q", Hold: time.Hour, OrderKey: "k"}, {Queue: "q", Hold: time.Hour, FairnessKey: "f"},
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := q.ChangeMatching(t.Context(), simplequeue.Filter{IDs: idsOf(list)}, simplequeue.Change{Priority: ptr(round % 10)}); err != nil {
				t.Error(err)
			}
		})
		done, err := q.CommitHeld(t.Context(), idsOf(list)...)
		if err != nil || len(done) != len(list) {
			t.Errorf("round %d: committed %d of %d, %v", round, len(done), len(list), err)
		}
		wg.Wait()
	}
}

// replaceKey is an insert that replaces the holder of the key "u".
func replaceKey(job simplequeue.NewJob) simplequeue.NewJob {
	job.Queue, job.UniqueKey, job.Unique.OnConflict = "q", "u", simplequeue.ConflictReplace
	return job
}

// A job that is replaced keeps its place where it stays at its gates, lines up
// at the end where they are others, and waits at none where it has none any
// more; by Go and by SQL. Nothing is left where it was.
func TestReplaceAtAGate(t *testing.T) {
	t.Parallel()
	for how, insertBy := range map[string]func(context.Context, *simplequeue.SimpleQueue, *pgxpool.Pool, simplequeue.NewJob) (simplequeue.Inserted, error){
		"Go": func(ctx context.Context, q *simplequeue.SimpleQueue, _ *pgxpool.Pool, job simplequeue.NewJob) (simplequeue.Inserted, error) {
			return q.Insert(ctx, job)
		},
		"SQL": func(ctx context.Context, _ *simplequeue.SimpleQueue, pool *pgxpool.Pool, job simplequeue.NewJob) (simplequeue.Inserted, error) {
			return enqueue(ctx, pool, job)
		},
	} {
		for name, c := range map[string]struct {
			first, with simplequeue.NewJob
			order       string // of runs of the key "k": the replaced job is b
			elsewhere   string // the key under which it ran
			held        bool
		}{
			"same key":     {simplequeue.NewJob{OrderKey: "k"}, simplequeue.NewJob{OrderKey: "k"}, "abc", "k", false},
			"another key":  {simplequeue.NewJob{OrderKey: "k"}, simplequeue.NewJob{OrderKey: "l"}, "ac", "l", false},
			"no key":       {simplequeue.NewJob{OrderKey: "k"}, simplequeue.NewJob{}, "ac", "", false},
			"from no key":  {simplequeue.NewJob{Delay: time.Hour}, simplequeue.NewJob{OrderKey: "k"}, "acb", "k", false},
			"with a share": {simplequeue.NewJob{OrderKey: "k"}, simplequeue.NewJob{OrderKey: "k", FairnessKey: "f"}, "acb", "k", false},
			"held":         {simplequeue.NewJob{OrderKey: "k", Hold: time.Hour}, simplequeue.NewJob{OrderKey: "k"}, "abc", "k", true},
			"held, moved":  {simplequeue.NewJob{OrderKey: "k", Hold: time.Hour}, simplequeue.NewJob{FairnessKey: "f"}, "ac", "", true},
			"delayed":      {simplequeue.NewJob{OrderKey: "k", Delay: time.Hour}, simplequeue.NewJob{OrderKey: "k"}, "abc", "k", false},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.New(t)
				r := newRuns()
				q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(job *simplequeue.Job) error {
					if job.UniqueKey != "" && string(job.Raw) != "new" {
						t.Errorf("the replaced job runs with %q", job.Raw)
					}
					return nil
				})}})
				names := map[uuid.UUID]string{}
				names[insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})] = "a"
				c.first.Queue, c.first.UniqueKey = "q", "u"
				b := insert(t, q, c.first)
				names[b] = "b"
				names[insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})] = "c"
				c.with.Raw = []byte("new")
				if in, err := insertBy(t.Context(), q, pool, replaceKey(c.with)); err != nil || in != (simplequeue.Inserted{ID: b, Duplicate: true, Replaced: true}) {
					t.Fatalf("replaced: %+v, %v", in, err)
				}
				if c.held {
					if info := get(t, q, b); info.Reason != "held" {
						t.Fatalf("a held job that is replaced waits for %q", info.Reason)
					}
					if done, err := q.CommitHeld(t.Context(), b); err != nil || len(done) != 1 {
						t.Fatalf("committed %v, %v", done, err)
					}
				}
				start(t, q)
				awaitCompleted(t, q, "q", 3)
				order := ""
				for _, id := range r.of("k") {
					order += names[id]
				}
				if order != c.order || !slices.Contains(r.of(c.elsewhere), b) {
					t.Errorf("ran as %q, want %q; under %q ran %v", order, c.order, c.elsewhere, r.of(c.elsewhere))
				}
				if c.with.FairnessKey == "" {
					awaitNoGates(t, pool)
				}
			})
		}
	}
}

// A job that has been let in is replaced too: it goes on holding its key, or
// gives it up.
func TestReplaceTheFirstOfAKey(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"k", "l"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("other", nothing)}})
			start(t, q)
			a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", UniqueKey: "u"})
			b := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
			awaitState(t, q, a, simplequeue.StatePending)
			if in, err := q.Insert(t.Context(), replaceKey(simplequeue.NewJob{OrderKey: key, Delay: 100 * time.Millisecond})); err != nil || !in.Replaced {
				t.Fatalf("replaced: %+v, %v", in, err)
			}
			if key == "l" {
				awaitState(t, q, b, simplequeue.StatePending)
			}
			r := newRuns()
			start(t, newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })}}))
			awaitCompleted(t, q, "q", 2)
			want := []uuid.UUID{a, b}
			if key == "l" {
				want = []uuid.UUID{b}
			}
			if got := r.of("k"); !slices.Equal(got, want) {
				t.Errorf("ran as %v, want %v", got, want)
			}
			awaitNoGates(t, pool)
		})
	}
}

// A debounce puts a job off that waits at a gate, or is held, while its time has
// not come.
func TestDebounceAtAGate(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	first := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	for i, c := range []struct {
		job    simplequeue.NewJob
		put    bool
		reason string
	}{
		{simplequeue.NewJob{Delay: time.Hour}, true, "order key"},
		{simplequeue.NewJob{}, false, "order key"},
		{simplequeue.NewJob{Hold: time.Hour, Delay: time.Hour}, true, "held"},
		{simplequeue.NewJob{Hold: time.Hour}, false, "held"},
	} {
		c.job.Queue, c.job.OrderKey, c.job.UniqueKey = "q", "k", fmt.Sprint(i)
		id := insert(t, q, c.job)
		in, err := q.Insert(t.Context(), simplequeue.NewJob{
			Queue: "q", UniqueKey: fmt.Sprint(i), Delay: 3 * time.Hour,
			Unique: simplequeue.Unique{OnConflict: simplequeue.ConflictDebounce, MaxDelay: 2 * time.Hour},
		})
		if err != nil || in.ID != id || in.Replaced != c.put {
			t.Errorf("%d: %+v, %v", i, in, err)
		}
		if info := get(t, q, id); !strings.Contains(info.Reason, c.reason) {
			t.Errorf("%d: waits for %q", i, info.Reason)
		}
		why, err := q.Why(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(why, func(f simplequeue.Finding) bool { return f.Code == simplequeue.FindingWaits })
		if c.put != (at >= 0) || c.put && (time.Until(why[at].Until) < 110*time.Minute || time.Until(why[at].Until) > 130*time.Minute) {
			t.Errorf("%d: %+v", i, why)
		}
		if !slices.ContainsFunc(why, func(f simplequeue.Finding) bool { return f.Code == simplequeue.FindingGate && f.Job == first }) {
			t.Errorf("%d is not behind %v: %+v", i, first, why)
		}
	}
	var invalid *simplequeue.InvalidJobError
	if _, err := q.Insert(t.Context(), replaceKey(simplequeue.NewJob{Hold: time.Hour})); !errors.As(err, &invalid) || invalid.Field != "Hold" {
		t.Errorf("a held job that replaces: %v", err)
	}
}

// Keys that are derived from a window of time go by the time of the job, whatever
// it waits for besides.
func TestDerivedKeysOfGatedAndHeldJobs(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	at := time.Now().Add(48 * time.Hour)
	for _, job := range []simplequeue.NewJob{{OrderKey: "k"}, {Hold: time.Hour}, {FairnessKey: "f"}} {
		job.Queue, job.Payload, job.RunAt = "q", json.RawMessage(fmt.Sprintf(`{"n": %q}`, job.OrderKey+job.FairnessKey)), at
		job.Unique = simplequeue.Unique{Fields: []string{"n"}, Window: time.Hour}
		id := insert(t, q, job)
		if in, err := q.Insert(t.Context(), job); err != nil || in.ID != id {
			t.Errorf("the same again: %+v, %v", in, err)
		}
		job.RunAt = at.Add(time.Hour)
		insert(t, q, job)
	}
}

// What templates, SQL and limits of queues know of order, shares and holds.
func TestGatedJobsFromTemplatesAndSQL(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	template := simplequeue.Template[string]{Defaults: simplequeue.NewJob{Queue: "q", OrderKey: "k", FairnessKey: "f"}}
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })}})
	start(t, q)
	h, err := template.Insert(t.Context(), q, "x", func(j *simplequeue.NewJob) { j.Hold = time.Hour })
	if err != nil {
		t.Fatal(err)
	}
	want := []uuid.UUID{h.ID}
	for i := range 6 {
		var in simplequeue.Inserted
		var err error
		if i%2 == 0 {
			in, err = template.Insert(t.Context(), q, "x")
		} else {
			in, err = enqueue(t.Context(), pool, template.New(`"y"`))
		}
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, in.ID)
	}
	bySQL, err := enqueue(t.Context(), pool, template.New(`"z"`, func(j *simplequeue.NewJob) { j.Hold = time.Hour }))
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, bySQL.ID)
	if done, err := q.CommitHeld(t.Context(), h.ID, bySQL.ID); err != nil || len(done) != 2 {
		t.Fatalf("committed %v, %v", done, err)
	}
	awaitCompleted(t, q, "q", int64(len(want)))
	if got := r.of("k"); !slices.Equal(got, want) {
		t.Errorf("ran as\n%v, want\n%v", got, want)
	}

	// A queue that is first in, first out, and a job that closes its key.
	for _, call := range []string{"'fifo', fifo => true, block_dead => true", "'fifo', order_key => 'x', fifo => true"} {
		if _, err := pool.Exec(t.Context(), "SELECT simplequeue.enqueue("+call+")"); err != nil {
			t.Fatal(err)
		}
	}
	byGo := newQueue(t, pool, simplequeue.Options{Queues: map[string]simplequeue.QueueOptions{"fifo": {FIFO: true}}})
	insert(t, byGo, simplequeue.NewJob{Queue: "fifo"})
	dead := simplequeue.HandlerFunc("fifo", func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(nil) })
	start(t, newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{dead}}))
	eventually(t, "the first has closed the queue", func() bool {
		list, err := q.BlockedKeys(t.Context(), "fifo")
		return err == nil && len(list) == 1
	})
	if c := counts(t, q, "fifo"); c[simplequeue.StateWaiting] != 2 {
		t.Errorf("behind it: %v", c)
	}
}

// Jobs at gates and held ones take their slots of a limited queue, and give them
// back; one that finds the queue full leaves nothing behind.
func TestGatedJobsOfABoundedQueue(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	if err := q.SetQueueLimit(t.Context(), "q", 3); err != nil {
		t.Fatal(err)
	}
	insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	cancelled := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Hold: time.Millisecond})
	for _, job := range []simplequeue.NewJob{{OrderKey: "k"}, {FairnessKey: "f"}, {Hold: time.Hour}} {
		job.Queue = "q"
		if _, err := q.Insert(t.Context(), job); !errors.Is(err, simplequeue.ErrQueueFull) {
			t.Errorf("%+v: %v, want full", job, err)
		}
		if _, err := enqueue(t.Context(), pool, job); sqlState(err) != "53400" {
			t.Errorf("%+v by SQL: %v, want full", job, err)
		}
	}
	if n := countRows(t, pool, "job_gated"); n != 3 {
		t.Errorf("%d jobs wait at gates, want 3", n)
	}
	if _, err := q.Cancel(t.Context(), cancelled, ""); err != nil {
		t.Fatal(err)
	}
	j, err := janitor.New(pool, janitor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := j.Once(t.Context()); err != nil || r.Expired != 1 {
		t.Fatalf("expired %d, %v", r.Expired, err)
	}
	insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	insert(t, q, simplequeue.NewJob{Queue: "q", Hold: time.Hour})
	slotsAddUp(t, pool)
	start(t, newQueue(t, pool, handler("q", nothing)))
	awaitCompleted(t, q, "q", 2)
	insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
}

// Operators find jobs by their keys, and are told what a job waits behind.
func TestWhyAtAGate(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running, finish := make(chan struct{}, 10), make(chan struct{})
	q := newQueue(t, pool, handler("q", func(context.Context, *simplequeue.Job) error {
		running <- struct{}{}
		<-finish
		return nil
	}))
	start(t, q)
	var jobs []uuid.UUID
	for _, job := range []simplequeue.NewJob{{}, {Delay: time.Hour}, {Hold: time.Hour}} {
		job.Queue, job.OrderKey, job.FairnessKey = "q", "k", "tenant"
		jobs = append(jobs, insert(t, q, job))
	}
	insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "other"})
	<-running
	<-running
	eventually(t, "the worker is registered", func() bool {
		w, err := q.Workers(t.Context())
		return err == nil && len(w) == 1 && w[0].Alive
	})
	why := func(id uuid.UUID, want ...simplequeue.FindingCode) []simplequeue.Finding {
		t.Helper()
		list, err := q.Why(t.Context(), id)
		var got []simplequeue.FindingCode
		for _, h := range list {
			got = append(got, h.Code)
			if !strings.HasSuffix(h.Text, ".") {
				t.Errorf("%q is no sentence", h.Text)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%+v, %v, want %v", list, err, want)
		}
		return list
	}
	why(jobs[0], simplequeue.FindingRunning)
	if h := why(jobs[1], simplequeue.FindingGate, simplequeue.FindingWaits)[0]; h.Job != jobs[0] || h.Jobs != 1 || !strings.Contains(h.Text, `"k"`) || !strings.Contains(h.Text, "running") {
		t.Errorf("behind one: %+v", h)
	}
	list := why(jobs[2], simplequeue.FindingHeld, simplequeue.FindingGate)
	if d := time.Until(list[0].Until); d < 50*time.Minute || d > time.Hour {
		t.Errorf("held until %v", list[0].Until)
	}
	if h := list[1]; h.Job != jobs[0] || h.Jobs != 2 {
		t.Errorf("behind two: %+v", h)
	}
	for _, f := range []simplequeue.Filter{{OrderKey: "k"}, {FairnessKey: "tenant"}, {OrderKey: "k", FairnessKey: "tenant", Queue: "q"}} {
		if found, err := q.List(t.Context(), f); err != nil || len(found) != 3 {
			t.Errorf("%+v: %d jobs, %v", f, len(found), err)
		}
		if found, err := q.Count(t.Context(), f); err != nil || found[simplequeue.StateWaiting] != 2 || found[simplequeue.StateRunning] != 1 {
			t.Errorf("%+v: %v, %v", f, found, err)
		}
	}
	close(finish)
	awaitState(t, q, jobs[0], simplequeue.StateCompleted)

	// Where nobody lets jobs in: the first of its line, and one that is held by its
	// turn alone.
	idle := newQueue(t, pgtest.New(t), simplequeue.Options{Queues: map[string]simplequeue.QueueOptions{"line": {FIFO: true}}})
	for sentence, job := range map[string]simplequeue.NewJob{
		`the first of the order key "k"`:                              {Queue: "q", OrderKey: "k"},
		`the first of the queue "line", which is first in, first out`: {Queue: "line"},
	} {
		found, err := idle.Why(t.Context(), insert(t, idle, job))
		if err != nil || len(found) != 2 || found[0].Code != simplequeue.FindingGate || found[0].Jobs != 0 || !strings.Contains(found[0].Text, sentence) {
			t.Errorf("why: %+v, %v, want that it is %s", found, err, sentence)
		}
	}
	insert(t, idle, simplequeue.NewJob{Queue: "q", FairnessKey: "a"})
	last := insert(t, idle, simplequeue.NewJob{Queue: "q", FairnessKey: "a"})
	found, err := idle.Why(t.Context(), last)
	if err != nil || len(found) != 2 || found[0].Code != simplequeue.FindingGate || found[0].Jobs != 1 || found[1].Code != simplequeue.FindingNoWorker {
		t.Errorf("why: %+v, %v", found, err)
	}
	if n, err := idle.CancelMatching(t.Context(), simplequeue.Filter{FairnessKey: "a"}, ""); err != nil || n != 2 {
		t.Errorf("cancelled %d, %v", n, err)
	}
}

// A job that completes in its handler's transaction opens its key when that
// commits, at every isolation level, and does not when it is rolled back.
func TestCompleteTxOpensTheKey(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			r := newRuns()
			rolledBack := errors.New("rolled back")
			q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{
				simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
					r.enter(job)
					defer r.leave(job)
					err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
						if err := job.SetResult("done"); err != nil {
							return err
						}
						if err := job.CompleteTx(ctx, tx); err != nil {
							return err
						}
						if job.Attempt == 1 && string(job.Raw) == "twice" {
							return rolledBack
						}
						return nil
					})
					if errors.Is(err, rolledBack) || sqlState(err) == "40001" {
						return simplequeue.RetryAfter(time.Millisecond, err)
					}
					return err
				}),
			}})
			var want []uuid.UUID
			for i := range 6 {
				job := simplequeue.NewJob{Queue: "q", OrderKey: "k", FairnessKey: []string{"", "f"}[i%2]}
				if i == 2 {
					job.Raw = []byte("twice")
				}
				want = append(want, insert(t, q, job))
			}
			want = slices.Insert(want, 3, want[2])
			start(t, q)
			awaitCompleted(t, q, "q", 6)
			if got := r.of("k"); !slices.Equal(got, want) && level != pgx.Serializable || r.most != 1 {
				t.Errorf("%d at once, ran as\n%v, want\n%v", r.most, got, want)
			}
			eventually(t, "the key has no row left", func() bool {
				return queryOne[int64](t, pool, "SELECT count(*) FROM simplequeue.job_gate_hold WHERE gate LIKE 'o%'") == 0
			})
		})
	}
}

// A job that is claimed and settled by hand opens its key, too, and keeps it
// when it is given back.
func TestClaimByHandOpensTheKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	start(t, newQueue(t, pool, handler("other", nothing))) // a worker, which lets jobs in
	var jobs []uuid.UUID
	for range 4 {
		jobs = append(jobs, insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"}))
	}
	next := func(want uuid.UUID) *simplequeue.Lease {
		t.Helper()
		awaitState(t, q, want, simplequeue.StatePending)
		list, err := q.Claim(t.Context(), "q", 10, time.Minute)
		if err != nil || len(list) != 1 || list[0].Job.ID != want {
			t.Fatalf("claimed %d, %v, want %v", len(list), err, want)
		}
		return list[0]
	}
	settle := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	settle(next(jobs[0]).GiveBack(t.Context()))
	settle(next(jobs[0]).Settle(t.Context(), simplequeue.RetryAfter(time.Millisecond, errors.New("no"))))
	settle(next(jobs[0]).Settle(t.Context(), nil))
	settle(next(jobs[1]).Settle(t.Context(), simplequeue.Critical(nil)))
	settle(next(jobs[2]).Settle(t.Context(), simplequeue.RescheduleToTail(0)))
	settle(next(jobs[3]).Settle(t.Context(), nil))
	settle(next(jobs[2]).Settle(t.Context(), nil))
	awaitNoGates(t, pool)
}
