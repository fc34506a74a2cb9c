package simplequeue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

var replace = simplequeue.Unique{OnConflict: simplequeue.ConflictReplace}

// debounce puts a job with a key off by a time, at most so long after its insert.
func debounce(delay, most time.Duration) simplequeue.NewJob {
	return simplequeue.NewJob{
		Queue: "a", UniqueKey: "k", Delay: delay,
		Unique: simplequeue.Unique{OnConflict: simplequeue.ConflictDebounce, MaxDelay: most},
	}
}

// mustMeet inserts a job whose key is taken and checks what that did.
func mustMeet(t testing.TB, insert func(simplequeue.NewJob) (simplequeue.Inserted, error), job simplequeue.NewJob, want simplequeue.Inserted) {
	t.Helper()
	want.Duplicate = true
	if got, err := insert(job); err != nil || got != want {
		t.Errorf("insert = %+v, %v, want %+v", got, err, want)
	}
}

// A job that has not started becomes what the new one says, wherever it is and
// wherever that moves it, but for its id and its time of insert.
func TestReplaceAJobThatHasNotStarted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	big := json.RawMessage(`"` + strings.Repeat("x", 3000) + `"`)
	full := allFields()
	full.Queue, full.Payload = "a", big
	forms := map[string]simplequeue.NewJob{
		"plain":     {Queue: "a", Payload: json.RawMessage("null")},
		"later":     {Queue: "a", RunAt: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC), Payload: 1, Priority: 3, Fingerprint: "g"},
		"big later": {Queue: "a", Delay: time.Hour, Raw: bytes.Repeat([]byte{1, 0}, 2000)},
		"full":      full,
	}
	paths := insertPaths(t, pool, q)
	for path, insertInto := range paths {
		one := func(job simplequeue.NewJob) (simplequeue.Inserted, error) {
			r, err := insertInto([]simplequeue.NewJob{job})
			if err != nil {
				return simplequeue.Inserted{}, err
			}
			return r[0], nil
		}
		for from, old := range forms {
			for to, job := range forms {
				key := path + from + to
				old.UniqueKey, old.UniqueGlobal, job.UniqueKey, job.UniqueGlobal, job.Unique = key, false, key, false, replace
				holder := insert(t, q, old)
				created := get(t, q, holder).CreatedAt
				mustMeet(t, one, job, simplequeue.Inserted{ID: holder, Replaced: true})
				got := get(t, q, holder)
				job.UniqueKey = key + " model"
				want := get(t, q, insert(t, q, job))
				want.UniqueKey = key
				if d := cmp.Diff(want, got, ignoreIdentity, aboutTime); d != "" || !got.CreatedAt.Equal(created) {
					t.Errorf("%s: %s replaced by %s, created %v, now %v (-want +got):\n%s", path, from, to, created, got.CreatedAt, d)
				}
				mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: key}, holder)
			}
		}
	}
	// Nothing is left of what was there before.
	for what, query := range map[string]string{
		"payloads":     "SELECT (SELECT count(*) FROM simplequeue.job_payload) - (SELECT count(*) FROM simplequeue.job_live WHERE length(payload::text) > 1024 OR length(raw) > 1024)",
		"fingerprints": "SELECT (SELECT count(*) FROM simplequeue.job_fingerprint) - (SELECT count(*) FROM simplequeue.job_live WHERE fingerprint IS NOT NULL)",
		"keys":         "SELECT (SELECT count(*) FROM simplequeue.job_unique) - (SELECT count(*) FROM simplequeue.job_live)",
	} {
		if n := queryOne[int](t, pool, query); n != 0 {
			t.Errorf("%d %s too many", n, what)
		}
	}
	q = newQueue(t, pool, handler("a", nothing))
	start(t, q)
	execute(t, pool, "UPDATE simplequeue.job_waiting SET run_at = now()")
	eventually(t, "every job has run", func() bool {
		c := counts(t, q, "a")
		return len(c) == 1 && c[simplequeue.StateCompleted] > 0
	})
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_payload"); n != 0 {
		t.Errorf("%d payloads are left", n)
	}
}

var aboutTime = cmp.Comparer(func(a, b time.Time) bool { return a.Sub(b).Abs() < time.Minute })

// A job that runs, or has run, is left alone, as is one of another queue; the
// result says so.
func TestReplaceLeavesAJobAloneThatHasStarted(t *testing.T) {
	t.Parallel()
	results := make(chan error)
	payloads := make(chan string, 9)
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
		payloads <- string(job.Payload)
		return <-results
	})
	pool := pgtest.New(t)
	q := newQueue(t, pool, opts)
	start(t, q)
	one := func(job simplequeue.NewJob) (simplequeue.Inserted, error) { return q.Insert(t.Context(), job) }
	old := simplequeue.NewJob{Queue: "a", UniqueKey: "k", Payload: "old"}
	id := insert(t, q, old)
	for _, result := range []error{simplequeue.RetryAfter(time.Hour, nil), simplequeue.RescheduleAfter(time.Hour), nil} {
		awaitState(t, q, id, simplequeue.StateRunning)
		for _, job := range []simplequeue.NewJob{{Queue: "a", UniqueKey: "k", Payload: "new", Unique: replace}, debounce(time.Hour, 0)} {
			mustMeet(t, one, job, simplequeue.Inserted{ID: id})
		}
		results <- result
		if result == nil {
			break
		}
		awaitState(t, q, id, simplequeue.StateWaiting)
		for _, job := range []simplequeue.NewJob{{Queue: "a", UniqueKey: "k", Payload: "new", Unique: replace}, debounce(9*time.Hour, 0)} {
			mustMeet(t, one, job, simplequeue.Inserted{ID: id})
		}
		if in := time.Until(get(t, q, id).RunAt); in > 2*time.Hour {
			t.Errorf("the job runs in %v", in)
		}
		execute(t, pool, "UPDATE simplequeue.job_waiting SET run_at = now()")
	}
	for range 3 {
		if p := <-payloads; p != `"old"` {
			t.Errorf("ran with %s, want what was inserted", p)
		}
	}
	awaitState(t, q, id, simplequeue.StateCompleted)

	other := insert(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: "g", UniqueGlobal: true, Delay: time.Hour})
	mustMeet(t, one, simplequeue.NewJob{Queue: "c", UniqueKey: "g", UniqueGlobal: true, Unique: replace}, simplequeue.Inserted{ID: other})
	if got := get(t, q, other); got.Queue != "b" || got.State != simplequeue.StateWaiting {
		t.Errorf("the job of another queue is %s in %s", got.State, got.Queue)
	}
}

// A waiting job is put off again and again, never forward, and no further after
// its insert than the bound; what is due stays so.
func TestDebounce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	one := func(job simplequeue.NewJob) (simplequeue.Inserted, error) { return q.Insert(t.Context(), job) }
	first := debounce(time.Hour, 0)
	first.Payload = "first"
	id := insert(t, q, first)
	runs := func(want time.Duration) {
		t.Helper()
		got := get(t, q, id)
		if in := got.RunAt.Sub(got.CreatedAt); (in - want).Abs() > time.Minute {
			t.Errorf("the job runs %v after its insert, want %v", in, want)
		}
		if string(got.Payload) != `"first"` {
			t.Errorf("payload %s, want the first", got.Payload)
		}
	}
	for _, c := range []struct{ delay, most, want time.Duration }{
		{2 * time.Hour, 0, 2 * time.Hour},
		{time.Hour, 0, 2 * time.Hour},
		{10 * time.Hour, 5 * time.Hour, 5 * time.Hour},
		{time.Hour, 3 * time.Hour, 5 * time.Hour},
		{10 * time.Hour, 4 * time.Hour, 5 * time.Hour},
		{10 * time.Hour, 6 * time.Hour, 6 * time.Hour},
	} {
		mustMeet(t, one, debounce(c.delay, c.most), simplequeue.Inserted{ID: id, Replaced: true})
		runs(c.want)
	}
	late := first
	late.RunAt, late.Delay, late.Payload = time.Now().Add(7*time.Hour), 0, "late"
	mustMeet(t, one, late, simplequeue.Inserted{ID: id, Replaced: true})
	runs(7 * time.Hour)

	// The bound also holds a replacement back.
	capped := simplequeue.NewJob{Queue: "a", UniqueKey: "k", Delay: 100 * time.Hour, Payload: "first", Unique: replace}
	capped.Unique.MaxDelay = 8 * time.Hour
	mustMeet(t, one, capped, simplequeue.Inserted{ID: id, Replaced: true})
	runs(8 * time.Hour)

	due := insert(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: "k"})
	push := debounce(time.Hour, 0)
	push.Queue = "b"
	mustMeet(t, one, push, simplequeue.Inserted{ID: due})
	if got := state(t, q, due); got != simplequeue.StatePending {
		t.Errorf("the job that was due is %s", got)
	}

	for queue, set := range map[string]string{
		"due":    "run_at = date_trunc('second', now()) - interval '1 minute'", // nobody has promoted it
		"parked": "run_at = 'infinity', reason = 'unknown_kind'",
	} {
		push.Queue = queue
		id := insert(t, q, push)
		execute(t, pool, "UPDATE simplequeue.job_waiting SET "+set+" WHERE queue = '"+queue+"'")
		before := get(t, q, id)
		mustMeet(t, one, push, simplequeue.Inserted{ID: id})
		if after := get(t, q, id); !after.RunAt.Equal(before.RunAt) || after.Reason != before.Reason {
			t.Errorf("%s: the job waits (%s) until %v, want as before until %v", queue, after.Reason, after.RunAt, before.RunAt)
		}
	}
}

// Who waits for a job learns of its end also when another insert has replaced it,
// and nothing else is kept of it.
func TestReplacedJobIsStillAwaited(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error { return job.SetResult(string(job.Payload)) })
	opts.Retention.Archive = simplequeue.KeepNothing
	q := newQueue(t, pool, opts)
	ids := map[string]uuid.UUID{}
	for name, delay := range map[string]time.Duration{"queued": 0, "scheduled": time.Hour} {
		ids[name] = insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: name, Payload: "old", Delay: delay, Awaited: true})
		r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a", UniqueKey: name, Payload: "new", Unique: replace})
		if err != nil || !r.Replaced || r.ID != ids[name] {
			t.Fatalf("Insert = %+v, %v", r, err)
		}
	}
	start(t, q)
	eventually(t, "both have ended", func() bool { return len(counts(t, q, "a")) == 0 })
	for name, id := range ids {
		if ended, err := q.Wait(t.Context(), id); err != nil || string(ended.Result) != `"\"new\""` {
			t.Errorf("%s: ended as %q with result %s, %v", name, ended.State, ended.Result, err)
		}
	}
}

// A job that was given back in the middle of its first attempt has started: it
// is not replaced, and keeps its steps.
func TestReplaceLeavesAJobAloneThatWasGivenBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	began := make(chan struct{}, 9)
	steps := map[string]int{}
	var mu sync.Mutex
	opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Kind == "step" {
			if _, err := simplequeue.Step(ctx, job, "step", func(context.Context) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				steps[string(job.Payload)]++
				return true, nil
			}); err != nil {
				return err
			}
		}
		began <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	opts.Stop.Drain = -1
	q := newQueue(t, pool, opts)
	stop := start(t, q)
	ids := map[string]uuid.UUID{}
	for _, kind := range []string{"", "step"} {
		ids[kind] = insert(t, q, simplequeue.NewJob{Queue: "a", Kind: kind, UniqueKey: kind + "k", Payload: "old"})
		<-began
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// Where a permit is refused later, it waits as if it had never begun.
	execute(t, pool, `WITH w AS (DELETE FROM simplequeue.job_queue WHERE kind = 'step' RETURNING id, queue, kind, priority, max_attempts, unique_scope, unique_key, payload_bytes)
		INSERT INTO simplequeue.job_waiting (id, queue, kind, priority, max_attempts, unique_scope, unique_key, payload_bytes, run_at, reason) SELECT w.*, now(), 'deferred' FROM w`)
	for kind, id := range ids {
		mustMeet(t, func(job simplequeue.NewJob) (simplequeue.Inserted, error) { return q.Insert(t.Context(), job) },
			simplequeue.NewJob{Queue: "a", UniqueKey: kind + "k", Payload: "new", Unique: replace}, simplequeue.Inserted{ID: id, Duplicate: true})
		if got := string(get(t, q, id).Payload); got != `"old"` {
			t.Errorf("kind %q: payload %s", kind, got)
		}
	}
	q = newQueue(t, pool, opts)
	start(t, q)
	<-began
	<-began
	mu.Lock()
	defer mu.Unlock()
	if len(steps) != 1 || steps[`"old"`] != 1 {
		t.Errorf("steps made: %v, want one", steps)
	}
}

// A change inside a transaction of the caller's is there when that commits and
// not otherwise; claims and promotion go on around it.
func TestReplaceInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	ran := make(chan string, 9)
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error { ran <- string(job.Payload); return nil }))
	id := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k", Payload: "old"})
	for _, commit := range []bool{false, true} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a", UniqueKey: "k", Payload: "new", Unique: replace})
		if err != nil || !r.Replaced || r.ID != id {
			t.Fatalf("InsertTx = %+v, %v", r, err)
		}
		if !commit {
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := get(t, q, id); string(got.Payload) != `"old"` {
				t.Errorf("payload %s after the rollback", got.Payload)
			}
			continue
		}
		start(t, q)
		insert(t, q, simplequeue.NewJob{Queue: "a", Payload: "other"})
		if got := <-ran; got != `"other"` {
			t.Errorf("%s ran while its replacement was open", got)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := <-ran; got != `"new"` {
			t.Errorf("ran with %s, want the replacement", got)
		}
	}
}

// Of a claim and a replacement that race, one comes first: what runs is what the
// result of the insert says.
func TestReplaceRacesWithClaims(t *testing.T) {
	t.Parallel()
	const races = 1000
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	var mu sync.Mutex
	ran := map[uuid.UUID][]string{}
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
		mu.Lock()
		defer mu.Unlock()
		ran[job.ID] = append(ran[job.ID], string(job.Payload))
		return nil
	})
	q := newQueue(t, pool, opts)
	start(t, q)
	var replaced, left, inserted atomic.Int64
	want := make([]map[uuid.UUID]string, 8)
	var all sync.WaitGroup
	for n := range want {
		want[n] = map[uuid.UUID]string{}
		all.Go(func() {
			for i := range races / len(want) {
				key := fmt.Sprint(n, " ", i)
				old := simplequeue.NewJob{Queue: "a", UniqueKey: key, Payload: "old", Delay: time.Duration(i%2) * time.Millisecond}
				first, err := q.Insert(context.Background(), old)
				if err != nil {
					t.Errorf("insert: %v", err)
					return
				}
				want[n][first.ID] = `"old"`
				time.Sleep(rand.N(3 * time.Millisecond))
				r, err := q.Insert(context.Background(), simplequeue.NewJob{Queue: "a", UniqueKey: key, Payload: "new", Unique: replace})
				switch {
				case errors.Is(err, simplequeue.ErrUniqueContention):
				case err != nil:
					t.Errorf("replace: %v", err)
				case r.Replaced:
					replaced.Add(1)
					want[n][first.ID] = `"new"`
					if r.ID != first.ID {
						t.Errorf("replaced %v, want %v", r.ID, first.ID)
					}
				case r.Duplicate:
					left.Add(1)
				default:
					inserted.Add(1)
					want[n][r.ID] = `"new"`
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d replaced, %d left alone, %d inserted", replaced.Load(), left.Load(), inserted.Load())
	for _, jobs := range want {
		for id, payload := range jobs {
			eventually(t, "the job has run", func() bool { mu.Lock(); defer mu.Unlock(); return len(ran[id]) > 0 })
			mu.Lock()
			if got := ran[id]; len(got) != 1 || got[0] != payload {
				t.Errorf("job %v ran with %v, want %s once", id, got, payload)
			}
			mu.Unlock()
		}
	}
	if replaced.Load() == 0 || left.Load()+inserted.Load() == 0 {
		t.Error("no race: every insert came first, or none")
	}
}

// Lists that change the same holders in different orders do not deadlock, and
// each is told of changes that were made.
func TestListsOfReplacementsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	q := newQueue(t, pool, simplequeue.Options{})
	const keys = 30
	var jobs []simplequeue.NewJob
	for i := range keys {
		jobs = append(jobs, simplequeue.NewJob{Queue: "a", UniqueKey: fmt.Sprint(i), Unique: replace, Delay: time.Duration(i%2) * time.Hour})
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	deadlocks := queryOne[int](t, pool, "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()")
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for range 10 {
				list := append([]simplequeue.NewJob(nil), jobs...)
				rand.Shuffle(keys, func(i, j int) { list[i], list[j] = list[j], list[i] })
				for i := range list {
					list[i].Payload = n
				}
				results, err := q.InsertMany(context.Background(), list)
				for _, r := range results {
					if !r.Replaced {
						t.Errorf("result %+v, want a replacement", r)
					}
				}
				if err != nil {
					t.Errorf("InsertMany: %v", err)
				}
			}
		})
	}
	all.Wait()
	if c := counts(t, q, "a"); c[simplequeue.StatePending]+c[simplequeue.StateWaiting] != keys {
		t.Errorf("%v, want %d jobs", c, keys)
	}
	if n := queryOne[int](t, pool, "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"); n != deadlocks {
		t.Errorf("%d deadlocks", n-deadlocks)
	}
}

// randomConflict is a random job with a unique key of any sort, which few others
// have too, that does whatever it may where the key is taken.
func randomConflict(r *rand.Rand, n int, now time.Time) simplequeue.NewJob {
	some := func(p int) bool { return r.IntN(p) == 0 }
	hours := func(from, to int) time.Duration { return time.Duration(from+r.IntN(to-from)) * time.Hour }
	job := simplequeue.NewJob{
		Payload: map[string]int{"user": r.IntN(3), "n": n}, Priority: r.IntN(3), Kind: fmt.Sprint(r.IntN(2)),
		UniqueGlobal: some(4), Awaited: some(3), Unique: simplequeue.Unique{OnConflict: simplequeue.Conflict(r.IntN(3))},
	}
	if some(2) {
		job.Unique.Fields = []string{"user"}
	} else {
		job.UniqueKey = fmt.Sprint(r.IntN(3))
	}
	if some(4) {
		job.Raw, job.Fingerprint = bytes.Repeat([]byte{1}, r.IntN(3000)), "f"
	}
	if some(4) {
		job.ID = uuid.UUID{0: 1, 15: byte(n)}
	}
	if some(3) {
		job.OrderKey = fmt.Sprint("o", r.IntN(2))
	}
	if some(4) {
		job.FairnessKey = fmt.Sprint("f", r.IntN(2))
	}
	if some(5) { // of a time that is given: another might be in the next window
		job.RunAt, job.Unique.Window = now.Add(hours(1, 4)), 2*time.Hour
	} else {
		job.Delay = hours(0, 4)
	}
	switch job.Unique.OnConflict {
	case simplequeue.ConflictSkip:
		if some(4) {
			job.Hold = hours(1, 4)
		}
		return job
	case simplequeue.ConflictDebounce:
		if job.RunAt.IsZero() && job.Delay == 0 {
			job.Delay = time.Hour
		}
	}
	if some(3) {
		job.Unique.MaxDelay = hours(0, 4)
	}
	return job
}

// A list does what its jobs do one after the other, whatever they do where their
// keys are taken, by jobs before the list or in it: the same results, the same
// rows, the same order of the jobs of a key.
func TestInsertManyIsInsertOneByOneOnConflicts(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	for range 20 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		var jobs []simplequeue.NewJob
		now := time.Now().Truncate(time.Microsecond)
		for n := range 1 + r.IntN(20) {
			jobs = append(jobs, randomConflict(r, n, now))
		}
		before := jobs[:r.IntN(len(jobs))] // inserted first, on both ways
		outcome := func(many bool) (told []string) {
			queue := fmt.Sprint(seed, many)
			list := append(append([]simplequeue.NewJob(nil), before...), jobs...)
			fresh := uuid.New()
			for i := range list {
				if list[i].Queue = queue; list[i].UniqueGlobal {
					list[i].UniqueKey = queue + list[i].UniqueKey
				}
				if last := list[i].ID[15]; list[i].ID != uuid.Nil {
					list[i].ID = fresh
					list[i].ID[15] = last
				}
			}
			names := map[uuid.UUID]int{}
			var results []simplequeue.Inserted
			add := func(list []simplequeue.NewJob) {
				got, err := q.InsertMany(t.Context(), list)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				results = append(results, got...)
			}
			for i := range before {
				add(list[i : i+1])
			}
			if many {
				add(list[len(before):])
			} else {
				for i := range jobs {
					add(list[len(before)+i:][:1])
				}
			}
			moved := map[uuid.UUID]bool{} // perhaps, and then behind the list
			for i, r := range results {
				if !r.Duplicate {
					names[r.ID] = i
				}
				moved[r.ID] = moved[r.ID] || r.Replaced
				told = append(told, fmt.Sprint(r.Duplicate, r.Replaced, names[r.ID]))
			}
			for i, row := range storedRows(t, pool, idsOf(results)...) {
				told = append(told, fmt.Sprint(names[results[i].ID], ": ", strings.ReplaceAll(row, queue, "")))
			}
			rows, err := pool.Query(t.Context(), `
				SELECT g.gate, g.job_id FROM simplequeue.job_gated AS g JOIN simplequeue.job_waiting AS w ON w.id = g.job_id
				WHERE w.queue = $1 AND g.gate LIKE 'o%' ORDER BY g.gate, g.place`, queue)
			if err != nil {
				t.Fatal(err)
			}
			var gate string
			var id uuid.UUID
			if _, err := pgx.ForEachRow(rows, []any{&gate, &id}, func() error {
				if !moved[id] {
					told = append(told, fmt.Sprint("in line at ", strings.ReplaceAll(gate, queue, ""), ": ", names[id]))
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return told
		}
		if d := cmp.Diff(outcome(false), outcome(true)); d != "" {
			t.Errorf("seed %d: one by one and as a list differ (-one +list):\n%s\njobs: %+v, the first %d of them before", seed, d, jobs, len(before))
		}
	}
}

// Jobs that run again and again under their keys, be they replaced or put off,
// leave neither keys nor jobs behind, and none is lost.
func TestConflictsWhileHoldersEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	opts := handler("a", func(context.Context, *simplequeue.Job) error { return nil })
	q := newQueue(t, pool, opts)
	start(t, q)
	var added atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 30 {
				var list []simplequeue.NewJob
				for range 1 + rand.IntN(4) {
					job := debounce(rand.N(20*time.Millisecond)+1, 50*time.Millisecond)
					job.UniqueKey = fmt.Sprint(rand.IntN(5))
					job.Unique.OnConflict = simplequeue.Conflict(1 + rand.IntN(2))
					list = append(list, job)
				}
				results, err := q.InsertMany(context.Background(), list)
				if err != nil && !errors.Is(err, simplequeue.ErrUniqueContention) {
					t.Errorf("InsertMany: %v", err)
				}
				for _, r := range results {
					if !r.Duplicate {
						added.Add(1)
					}
				}
			}
		})
	}
	all.Wait()
	eventually(t, "all have run", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == added.Load() })
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_unique"); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}
