package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/reaper"
)

// mustBeDuplicate inserts a job whose key or id must be known.
func mustBeDuplicate(t testing.TB, q *simplequeue.SimpleQueue, job simplequeue.NewJob, of uuid.UUID) {
	t.Helper()
	r, err := q.Insert(context.Background(), job)
	if err != nil || !r.Duplicate || r.ID != of {
		t.Errorf("Insert = %+v, %v, want a duplicate of %v", r, err, of)
	}
}

// A key belongs to its queue, or with UniqueGlobal to all queues; the two do
// not meet.
func TestScopeOfAUniqueKey(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	a := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
	b := insert(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: "k"})
	global := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k", UniqueGlobal: true})
	mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"}, a)
	mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: "k", Delay: time.Hour}, b)
	mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "c", UniqueKey: "k", UniqueGlobal: true}, global)
}

// A key is held from the insert on, through every state that is not terminal,
// the job is never in its own way, and the key is free once the job has ended,
// whichever way and before any sweep.
func TestAUniqueKeyIsFreeWhenItsJobHasEnded(t *testing.T) {
	t.Parallel()
	type step struct {
		result error
		want   simplequeue.State
	}
	later := simplequeue.RetryAfter(time.Hour, errors.New("later"))
	for name, steps := range map[string][]step{
		"completed":     {{nil, simplequeue.StateCompleted}},
		"cancelled":     {{simplequeue.Cancel(nil), simplequeue.StateCancelled}},
		"critical":      {{simplequeue.Critical(nil), simplequeue.StateCritical}},
		"unprocessable": {{simplequeue.Unprocessable(nil), simplequeue.StateUnprocessable}},
		"failed":        {{later, simplequeue.StateWaiting}, {later, simplequeue.StateWaiting}, {later, simplequeue.StateFailed}},
		"rescheduled":   {{simplequeue.RescheduleAfter(time.Hour), simplequeue.StateWaiting}, {nil, simplequeue.StateCompleted}},
		"bad job":       {{simplequeue.RescheduleAfter(time.Hour), simplequeue.StateWaiting}, {simplequeue.RescheduleAfter(0), simplequeue.StateBadJob}},
	} {
		for _, global := range []bool{false, true} {
			t.Run(fmt.Sprint(name, global), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.New(t)
				results := make(chan error)
				opts := handler("a", func(context.Context, *simplequeue.Job) error { return <-results })
				opts.MaxReschedules = 2
				opts.JanitorInterval = time.Hour
				opts.PollInterval = 20 * time.Millisecond
				q := newQueue(t, pool, opts)
				start(t, q)
				job := simplequeue.NewJob{Queue: "a", UniqueKey: "k", UniqueGlobal: global, Delay: time.Hour}
				id := insert(t, q, job)
				for _, s := range steps {
					awaitState(t, q, id, simplequeue.StateWaiting)
					mustBeDuplicate(t, q, job, id)
					execute(t, pool, "UPDATE simplequeue.job_waiting SET run_at = now() - interval '1 second'")
					awaitState(t, q, id, simplequeue.StateRunning)
					mustBeDuplicate(t, q, job, id)
					results <- s.result
					awaitState(t, q, id, s.want)
				}
				next := insert(t, q, job)
				mustBeDuplicate(t, q, job, next)
				if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_unique"); n != 1 {
					t.Errorf("%d keys are held, want 1", n)
				}
			})
		}
	}
}

// A key of a job that was cancelled before it ran, or whose workers keep dying,
// is free as soon as the job has ended.
func TestAUniqueKeyIsFreeAfterCancelAndAfterCrashes(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	ctx := t.Context()
	for _, job := range []simplequeue.NewJob{{Queue: "a", UniqueKey: "k"}, {Queue: "a", UniqueKey: "k", Delay: time.Hour}} {
		id := insert(t, q, job)
		if _, err := q.Cancel(ctx, id, ""); err != nil {
			t.Fatal(err)
		}
	}
	id := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
	execute(t, pool, `INSERT INTO simplequeue.job_running
		(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count, crash_count,
		 payload_bytes, priority, lane, queue, kind, unique_scope, unique_key)
		SELECT 1, now() - interval '1 hour', id, seq, created_at, gen_random_uuid(), 1000, 1, max_attempts, 0, 2,
		       payload_bytes, priority, lane, queue, kind, unique_scope, unique_key FROM simplequeue.job_queue`,
		"DELETE FROM simplequeue.job_queue")
	mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"}, id)
	r, err := reaper.New(pool, reaper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Once(ctx); err != nil || got.Bad != 1 {
		t.Fatalf("reaper: %+v, %v, want one bad job", got, err)
	}
	if got := state(t, q, id); got != simplequeue.StateBadJob {
		t.Errorf("job is %s, want bad_job", got)
	}
	insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
}

// A key that is held costs an insert nothing but the look: it never waits for
// the job that holds it.
func TestInsertDoesNotWaitForTheJobThatHoldsTheKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	hold := make(chan struct{})
	q := newQueue(t, pool, handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		if _, err := tx.Exec(ctx, "SELECT FROM simplequeue.job_running WHERE id = $1 FOR UPDATE", job.ID); err != nil {
			return err
		}
		<-hold
		return nil
	}))
	start(t, q)
	defer close(hold)
	ids := make([]uuid.UUID, 3)
	for i := range ids {
		ids[i] = insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: fmt.Sprint(i)})
		awaitState(t, q, ids[i], simplequeue.StateRunning)
	}
	began := time.Now()
	for n := range 60 {
		mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: fmt.Sprint(n % 3)}, ids[n%3])
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("60 inserts took %v", took)
	}
}

// An id that the caller chose is inserted once in seven days, and once while
// its job lives: pending, running, archived or retained nowhere.
func TestAChosenIDIsInsertedOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	release := make(chan error)
	opts := handler("a", func(context.Context, *simplequeue.Job) error { return <-release })
	opts.Retention.Archive = simplequeue.KeepNothing
	q := newQueue(t, pool, opts)
	job := simplequeue.NewJob{ID: uuid.New(), Queue: "a"}
	if id := insert(t, q, job); id != job.ID {
		t.Fatalf("id %v, want %v", id, job.ID)
	}
	keyed := job
	keyed.UniqueKey = "k"
	mustBeDuplicate(t, q, job, job.ID)
	mustBeDuplicate(t, q, keyed, job.ID)
	start(t, q)
	awaitState(t, q, job.ID, simplequeue.StateRunning)
	mustBeDuplicate(t, q, job, job.ID)
	release <- nil
	eventually(t, "the job is gone", func() bool { return state(t, q, job.ID) == "" })
	mustBeDuplicate(t, q, job, job.ID)
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_unique"); n != 0 {
		t.Errorf("%d keys are held by jobs that were skipped for their id", n)
	}

	many, err := q.InsertMany(t.Context(), []simplequeue.NewJob{{Queue: "b"}, job, {ID: uuid.New(), Queue: "b"}})
	if err != nil || many[0].Duplicate || !many[1].Duplicate || many[2].Duplicate {
		t.Errorf("InsertMany = %+v, %v, want the second to be a duplicate", many, err)
	}
	_, err = q.InsertMany(t.Context(), []simplequeue.NewJob{{ID: job.ID, Queue: "b"}, {ID: job.ID, Queue: "b"}})
	var invalid *simplequeue.InvalidJobError
	if !errors.As(err, &invalid) || invalid.Field != "ID" || invalid.Index != 1 {
		t.Errorf("error %v, want an InvalidJobError of the second id", err)
	}
}

// A job that lost its key was not inserted: its id can be inserted later.
func TestAChosenIDThatLostItsKeyCanBeInsertedLater(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	holder := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
	job := simplequeue.NewJob{ID: uuid.New(), Queue: "a", UniqueKey: "k"}
	mustBeDuplicate(t, q, job, holder)
	if _, err := q.Cancel(t.Context(), holder, ""); err != nil {
		t.Fatal(err)
	}
	if id := insert(t, q, job); id != job.ID {
		t.Errorf("inserted as %v, want %v", id, job.ID)
	}
}

// Of many that insert one id at once, one inserts it.
func TestConcurrentInsertsOfOneID(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	for round := range 10 {
		job := simplequeue.NewJob{ID: uuid.New(), Queue: "a"}
		if round%2 == 1 {
			job.UniqueKey = fmt.Sprint(round)
		}
		results := make(chan simplequeue.Inserted, 10)
		for range cap(results) {
			go func() {
				r, err := q.Insert(context.Background(), job)
				if err != nil || r.ID != job.ID {
					t.Errorf("Insert = %+v, %v", r, err)
				}
				results <- r
			}()
		}
		inserted := 0
		for range cap(results) {
			if r := <-results; !r.Duplicate {
				inserted++
			}
		}
		if inserted != 1 {
			t.Errorf("%d inserts took the id, want 1", inserted)
		}
	}
	if c := counts(t, q, "a"); c[simplequeue.StatePending] != 10 {
		t.Errorf("counts %v, want 10 pending", c)
	}
}

// InsertMany of a list does what Insert of each job in turn does: the same jobs
// are skipped, for the same holders, and the rows of the others are the same.
func TestInsertManyIsInsertOneByOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	for range 40 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		ids := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
		held := []simplequeue.NewJob{{ID: ids[0], UniqueKey: "a"}, {UniqueKey: "b", Delay: time.Hour}, {UniqueKey: "c", UniqueGlobal: true}}
		var jobs []simplequeue.NewJob
		used := map[uuid.UUID]bool{}
		for range r.IntN(15) {
			job := simplequeue.NewJob{Payload: len(jobs)}
			if n := r.IntN(6); n < 5 {
				job.UniqueKey = string(rune('a' + n))
				job.UniqueGlobal = r.IntN(3) == 0
			}
			if id := ids[r.IntN(3)]; r.IntN(4) == 0 && !used[id] {
				used[id] = true
				job.ID = id
			}
			if r.IntN(3) == 0 {
				job.Delay = time.Hour
			}
			jobs = append(jobs, job)
		}
		outcome := func(many bool) []string {
			queue := fmt.Sprint(seed, many)
			fresh := map[uuid.UUID]uuid.UUID{} // each pass has keys and ids of its own
			set := func(job simplequeue.NewJob) simplequeue.NewJob {
				job.Queue = queue
				if job.UniqueGlobal {
					job.UniqueKey = queue + job.UniqueKey
				}
				if job.ID != uuid.Nil {
					if fresh[job.ID] == uuid.Nil {
						fresh[job.ID] = uuid.New()
					}
					job.ID = fresh[job.ID]
				}
				return job
			}
			names := map[uuid.UUID]string{}
			for _, job := range held {
				names[insert(t, q, set(job))] = "holder of " + job.UniqueKey
			}
			list := make([]simplequeue.NewJob, len(jobs))
			for i := range jobs {
				list[i] = set(jobs[i])
			}
			var results []simplequeue.Inserted
			if many {
				got, err := q.InsertMany(t.Context(), list)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				results = got
			} else {
				for i := range list {
					got, err := q.Insert(t.Context(), list[i])
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					results = append(results, got)
				}
			}
			rows := storedRows(t, pool, idsOf(results)...)
			var told []string
			for i, r := range results {
				if !r.Duplicate {
					names[r.ID] = fmt.Sprint("job ", i)
					if want := list[i].ID; want != uuid.Nil && r.ID != want {
						t.Errorf("seed %d: job %d inserted as %v, want %v", seed, i, r.ID, want)
					}
				}
				told = append(told, fmt.Sprint(r.Duplicate, " ", names[r.ID], " ", strings.ReplaceAll(rows[i], queue, "")))
			}
			return told
		}
		if d := cmp.Diff(outcome(false), outcome(true)); d != "" {
			t.Errorf("seed %d: one by one and as a list differ (-one +list):\n%s\njobs: %+v", seed, d, jobs)
		}
	}
}

// At every commit exactly one live job holds a key that anybody has committed:
// whatever the others do, at whatever isolation level, and never none.
func TestOneHolderOfAKeyAtEveryCommit(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, pgtest.Database(t), 20)
			q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
			oneHolder(t, q, func(ctx context.Context, job simplequeue.NewJob, commit bool) (simplequeue.Inserted, error) {
				tx, err := pool.Begin(ctx)
				if err != nil {
					return simplequeue.Inserted{}, err
				}
				defer func() { _ = tx.Rollback(ctx) }()
				if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL "+level); err != nil {
					return simplequeue.Inserted{}, err
				}
				r, err := q.InsertTx(ctx, tx, job)
				if err != nil {
					return r, err
				}
				time.Sleep(rand.N(5 * time.Millisecond)) // the others must meet this key uncommitted
				if !commit {
					return r, errRolledBack
				}
				return r, tx.Commit(ctx)
			})
		})
	}
}

var errRolledBack = errors.New("rolled back")

// oneHolder lets 64 goroutines fight for one key, round after round.
func oneHolder(t *testing.T, q *simplequeue.SimpleQueue, try func(context.Context, simplequeue.NewJob, bool) (simplequeue.Inserted, error)) {
	for round := range 5 {
		key := fmt.Sprint(round)
		var mu sync.Mutex
		var took []uuid.UUID
		duplicates := map[uuid.UUID]int{}
		var all sync.WaitGroup
		for n := range 64 {
			all.Go(func() {
				commit := n%4 != 0
				r, err := try(context.Background(), simplequeue.NewJob{Queue: "a", UniqueKey: key}, commit)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, errRolledBack), errors.Is(err, simplequeue.ErrUniqueContention), sqlState(err) == "40001":
				case err != nil:
					t.Errorf("insert: %v", err)
				case r.Duplicate:
					duplicates[r.ID]++
				default:
					took = append(took, r.ID)
				}
			})
		}
		all.Wait()
		list, err := q.List(t.Context(), simplequeue.Filter{Queue: "a", UniqueKey: key})
		if err != nil {
			t.Fatal(err)
		}
		if len(took) != 1 || len(list) != 1 || list[0].ID != took[0] {
			t.Fatalf("%d inserts committed, %d live jobs hold the key, want one and the same", len(took), len(list))
		}
		for id, n := range duplicates {
			if id != took[0] {
				t.Errorf("%d duplicates were told of holder %v, want %v", n, id, took[0])
			}
		}
	}
}

// While holders come, run and end, keyed inserts and lists of them go on: each
// is inserted, a duplicate of a job that exists, or contended; nothing deadlocks
// and no key is left behind.
func TestKeyedInsertsWhileHoldersEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	opts := handler("a", func(context.Context, *simplequeue.Job) error {
		if rand.IntN(4) == 0 {
			return errors.New("again")
		}
		return nil
	})
	opts.Backoff = backoff.Constant(time.Millisecond)
	q := newQueue(t, pool, opts)
	start(t, q)
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			for range 30 {
				jobs := make([]simplequeue.NewJob, 1+rand.IntN(6))
				for i := range jobs {
					jobs[i] = simplequeue.NewJob{Queue: "a", UniqueKey: fmt.Sprint(rand.IntN(8))}
				}
				r, err := q.InsertMany(context.Background(), jobs)
				switch {
				case errors.Is(err, simplequeue.ErrUniqueContention):
				case err != nil:
					t.Errorf("InsertMany: %v", err)
				default:
					for _, one := range r {
						if one.ID == uuid.Nil {
							t.Errorf("a result has no id: %+v", r)
						}
					}
				}
			}
		})
	}
	all.Wait()
	eventually(t, "all jobs ended", func() bool {
		c := counts(t, q, "a")
		return c[simplequeue.StatePending]+c[simplequeue.StateRunning]+c[simplequeue.StateWaiting] == 0
	})
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_unique"); n != 0 {
		t.Errorf("%d keys are still held", n)
	}
}

// Lists longer than a statement take their keys in one order too: two of them
// the other way round do not deadlock.
func TestLongListsOfKeysTheOtherWayRound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	const n = 10_500
	up, down := make([]simplequeue.NewJob, n), make([]simplequeue.NewJob, n)
	for i := range up {
		up[i] = simplequeue.NewJob{Queue: "a", UniqueKey: fmt.Sprintf("%06d", i)}
		down[n-1-i] = up[i]
	}
	errs := make(chan error, 2)
	for _, jobs := range [][]simplequeue.NewJob{up, down} {
		go func() {
			_, err := q.InsertMany(context.Background(), jobs)
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Errorf("InsertMany: %v", err)
		}
	}
	if c := counts(t, q, "a"); c[simplequeue.StatePending] != n {
		t.Errorf("counts %v, want %d pending", c, n)
	}
}

// A job that is asked to stop keeps its key until its handler has returned:
// two handlers of one key never run together because of a cancel.
func TestAKeyIsHeldUntilACancelledHandlerReturns(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	opts := handler("a", func(ctx context.Context, _ *simplequeue.Job) error {
		<-ctx.Done()
		<-release
		return ctx.Err()
	})
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	job := simplequeue.NewJob{Queue: "a", UniqueKey: "k"}
	id := insert(t, q, job)
	awaitState(t, q, id, simplequeue.StateRunning)
	if _, err := q.Cancel(t.Context(), id, "enough"); err != nil {
		t.Fatal(err)
	}
	awaitState(t, q, id, simplequeue.StateCancelling)
	mustBeDuplicate(t, q, job, id)
	close(release)
	awaitState(t, q, id, simplequeue.StateCancelled)
	insert(t, q, job)
}
