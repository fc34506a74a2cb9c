package simplequeue_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
)

// A held job waits, with its key taken, until it is committed, in any
// transaction, or none, of any program; the answer says which were.
func TestCommitHeld(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 8)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	q := newQueue(t, pool, handler("q", func(context.Context, *simplequeue.Job) error { return nil }))
	other := newQueue(t, pool, simplequeue.Options{})
	start(t, q)
	held := func(key string) uuid.UUID {
		return insert(t, q, simplequeue.NewJob{Queue: "q", Hold: time.Hour, UniqueKey: key, Payload: make([]byte, 3000)})
	}
	a, b, c := held("a"), held("b"), held("c")
	if info := get(t, q, a); info.State != simplequeue.StateWaiting || info.Reason != "held" || !info.RunAt.IsZero() {
		t.Errorf("a held job is %s, %q, due %v", info.State, info.Reason, info.RunAt)
	}
	if r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "q", UniqueKey: "a"}); err != nil || !r.Duplicate || r.ID != a {
		t.Errorf("insert with the key of a held job: %+v, %v", r, err)
	}
	plain := insert(t, q, simplequeue.NewJob{Queue: "q", Delay: time.Hour})

	nobody := uuid.New()
	done, err := other.CommitHeld(t.Context(), b, nobody, plain, a, b)
	if err != nil || !slices.Equal(done, []uuid.UUID{b, a}) {
		t.Errorf("committed %v, %v, want %v", done, err, []uuid.UUID{b, a})
	}
	awaitCompleted(t, q, "q", 2)
	if done, err := other.CommitHeld(t.Context(), a); err != nil || len(done) != 0 {
		t.Errorf("committed twice: %v, %v", done, err)
	}
	if done, err := other.CommitHeld(t.Context()); err != nil || len(done) != 0 {
		t.Errorf("committed nothing: %v, %v", done, err)
	}

	// A transaction that is rolled back leaves the hold.
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if done, err := q.CommitHeldTx(t.Context(), tx, c); err != nil || len(done) != 1 {
			t.Errorf("committed %v, %v", done, err)
		}
		return errors.New("rolled back")
	})
	if info := get(t, q, c); err == nil || info.Reason != "held" {
		t.Errorf("after a rollback the job is %s, %q", info.State, info.Reason)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := q.InsertSQLTx(t.Context(), tx, simplequeue.NewJob{Queue: "q", Hold: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if done, err := q.CommitHeldSQLTx(t.Context(), tx, c, d.ID); err != nil || len(done) != 2 {
		t.Errorf("committed %v, %v", done, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	awaitCompleted(t, q, "q", 4)

	// The time of the insert counts, by the database's clock.
	e := insert(t, q, simplequeue.NewJob{Queue: "q", Hold: time.Hour, Delay: time.Hour})
	if done, err := q.CommitHeld(t.Context(), e); err != nil || len(done) != 1 {
		t.Errorf("committed %v, %v", done, err)
	}
	if info := get(t, q, e); info.State != simplequeue.StateWaiting || info.Reason != "scheduled" || time.Until(info.RunAt) < 50*time.Minute {
		t.Errorf("a delayed job is %s, %q, due %v", info.State, info.Reason, info.RunAt)
	}
}

// A held job has taken its place: those behind it wait until it is committed, or
// gone: cancelled or too late.
func TestHeldJobsHaveTheirPlace(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{
		JanitorInterval: 20 * time.Millisecond,
		Handlers:        []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })},
	})
	one := func(hold time.Duration) uuid.UUID {
		return insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Hold: hold})
	}
	a, b, c, d, e := one(0), one(time.Hour), one(0), one(time.Hour), one(0)
	f, g := one(200*time.Millisecond), one(0)
	start(t, q)
	awaitState(t, q, a, simplequeue.StateCompleted)
	// Nothing can pass b: c is looked at, and stays.
	awaitLooks(t, pool)
	if s := state(t, q, c); s != simplequeue.StateWaiting {
		t.Errorf("behind a held job: %s", s)
	}
	if done, err := q.CommitHeld(t.Context(), b); err != nil || len(done) != 1 {
		t.Errorf("committed %v, %v", done, err)
	}
	awaitState(t, q, c, simplequeue.StateCompleted)
	if _, err := q.Cancel(t.Context(), d, ""); err != nil {
		t.Fatal(err)
	}
	awaitState(t, q, e, simplequeue.StateCompleted)
	awaitState(t, q, g, simplequeue.StateCompleted)
	if got := r.of("k"); !slices.Equal(got, []uuid.UUID{a, b, c, e, g}) {
		t.Errorf("ran as %v", got)
	}
	if s := state(t, q, f); s != "" {
		t.Errorf("after its hold the job is %s", s)
	}
	awaitNoGates(t, pool)
}

// awaitLooks waits until every look has been taken.
func awaitLooks(t *testing.T, pool querier) {
	t.Helper()
	eventually(t, "all looks are taken", func() bool {
		var n int
		if err := pool.QueryRow(context.Background(), "SELECT count(*) FROM simplequeue.job_gate_look").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}

// A hold that is over leaves nothing of the job: key, id, payload and place are
// free.
func TestAHoldThatIsOverLeavesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	job := simplequeue.NewJob{
		ID: uuid.New(), Queue: "q", UniqueKey: "u", Fingerprint: "f", OrderKey: "o", Hold: time.Millisecond, Payload: make([]byte, 3000),
	}
	insert(t, q, job)
	cancelled := insert(t, q, simplequeue.NewJob{Queue: "q", Hold: time.Millisecond})
	if _, err := q.Cancel(t.Context(), cancelled, ""); err != nil {
		t.Fatal(err)
	}
	// Somebody is about to commit it: it does not expire meanwhile.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if done, err := q.CommitHeldTx(t.Context(), tx, job.ID); err != nil || len(done) != 1 {
		t.Fatalf("committed %v, %v", done, err)
	}
	j, err := janitor.New(pool, janitor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := j.Once(t.Context()); err != nil || r.Expired != 0 {
		t.Fatalf("expired %d, %v, while it was being committed", r.Expired, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := j.Once(t.Context()); err != nil || r.Expired != 1 {
		t.Fatalf("expired %d, %v", r.Expired, err)
	}
	var left int
	err = pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM simplequeue.job_held) + (SELECT count(*) FROM simplequeue.job_unique)
		+ (SELECT count(*) FROM simplequeue.job_fingerprint) + (SELECT count(*) FROM simplequeue.job_payload)
		+ (SELECT count(*) FROM simplequeue.job_gated) + (SELECT count(*) FROM simplequeue.job_client_id)
		+ (SELECT count(*) FROM simplequeue.job_live)`).Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d rows left, %v", left, err)
	}
	if done, err := q.CommitHeld(t.Context(), job.ID); err != nil || len(done) != 0 {
		t.Errorf("committed %v, %v, after its end", done, err)
	}
	job.Hold = 0
	insert(t, q, job)
}

// A commit at the moment of the hold's end either lets the job run or says that
// it is gone: a thousand times.
func TestCommitRacesWithTheEndOfTheHold(t *testing.T) {
	t.Parallel()
	const races, committers = 1000, 4
	pool := pgtest.New(t)
	j, err := janitor.New(pool, janitor.Options{Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue(t, pool, simplequeue.Options{})
	var jobs []simplequeue.NewJob
	for i := range races {
		jobs = append(jobs, simplequeue.NewJob{Queue: "q", Hold: 300*time.Millisecond + time.Duration(i)*3*time.Millisecond})
		if i%2 == 0 {
			jobs[i].OrderKey = fmt.Sprint("k", i%50)
		}
	}
	makeRoom(t, pool) // a first sweep makes partitions for longer than some holds last
	list, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	// The holds count from a moment within the call, which may take a while.
	begun := scalar[time.Time](t, pool, "SELECT min(expires_at) FROM simplequeue.job_held").Add(-jobs[0].Hold)
	sweeping, stop := context.WithCancel(t.Context())
	var sweeper sync.WaitGroup
	sweeper.Go(func() { _ = j.Run(sweeping) })
	committed := make([]bool, races)
	var wg sync.WaitGroup
	for n := range committers {
		wg.Go(func() {
			for i := n; i < races; i += committers {
				time.Sleep(time.Until(begun.Add(jobs[i].Hold + time.Duration(rand.IntN(100)-50)*time.Millisecond)))
				done, err := q.CommitHeld(t.Context(), list[i].ID)
				if err != nil {
					t.Error(err)
				}
				committed[i] = len(done) == 1
			}
		})
	}
	wg.Wait()
	stop()
	sweeper.Wait()
	if _, err := j.Once(t.Context()); err != nil {
		t.Fatal(err)
	}

	worker := newQueue(t, pool, handler("q", func(context.Context, *simplequeue.Job) error { return nil }))
	start(t, worker)
	want := int64(0)
	for _, c := range committed {
		if c {
			want++
		}
	}
	awaitCompleted(t, worker, "q", want)
	for i, c := range committed {
		if s := state(t, q, list[i].ID); c != (s == simplequeue.StateCompleted) || !c && s != "" {
			t.Errorf("job %d is %q, committed %t", i, s, c)
		}
	}
	t.Logf("%d of %d committed", want, races)
	if want == 0 || want == races {
		t.Errorf("%d of %d committed: there was no race", want, races)
	}
	awaitNoGates(t, pool)
}

func TestHoldIsChecked(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	for _, hold := range []time.Duration{-1, 8 * 24 * time.Hour} {
		var invalid *simplequeue.InvalidJobError
		if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "q", Hold: hold}); !errors.As(err, &invalid) || invalid.Field != "Hold" {
			t.Errorf("%v: %v", hold, err)
		}
	}
}
