package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
	"github.com/simplequeue/simplequeue/reaper"
)

// limit sets the limit of queue a.
func limit(t testing.TB, q *simplequeue.SimpleQueue, n int) {
	t.Helper()
	if err := q.SetQueueLimit(context.Background(), "a", n); err != nil {
		t.Fatal(err)
	}
}

// live is how many jobs of queue a are live, in one snapshot.
func live(t testing.TB, pool *pgxpool.Pool) int {
	t.Helper()
	return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_live WHERE queue = 'a'")
}

// slotsAddUp checks, in one snapshot, that each live job has its slot, no other
// has one, and free and taken slots less those owed are the limit.
func slotsAddUp(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if got := queryOne[string](t, pool, `
		SELECT concat_ws(', ',
			(SELECT 'slots ' || count(*) || ' limit ' || max(b.max_live) FROM simplequeue.job_slot AS s JOIN simplequeue.job_bound AS b USING (bound_id)
			 HAVING count(*) - max(b.owed) <> max(b.max_live)),
			(SELECT 'without slot ' || string_agg(id::text, ' ') FROM simplequeue.job_live WHERE queue = 'a' AND id NOT IN (SELECT job_id FROM simplequeue.job_slot WHERE job_id IS NOT NULL)),
			(SELECT 'slot of ' || string_agg(job_id::text, ' ') FROM simplequeue.job_slot WHERE job_id NOT IN (SELECT id FROM simplequeue.job_live)))`); got != "" {
		t.Errorf("slots do not add up: %s", got)
	}
}

// mustBeFull checks the error of an insert into a full queue.
func mustBeFull(t testing.TB, err error, limit int) {
	t.Helper()
	var full *simplequeue.QueueFullError
	if !errors.Is(err, simplequeue.ErrQueueFull) || !errors.As(err, &full) || full.Queue != "a" || full.Limit != limit {
		t.Errorf("error %v, want that queue a with its limit of %d is full", err, limit)
	}
}

// boundedInserts are the ways to insert jobs. Those that have a transaction roll
// it back unless it is to be kept.
func boundedInserts(t *testing.T, pool *pgxpool.Pool) []func(q *simplequeue.SimpleQueue, jobs []simplequeue.NewJob, keep bool) error {
	ctx := context.Background()
	db := openSQL(t, "postgres", pool)
	db.SetMaxOpenConns(10)
	end := func(err error, keep bool) error {
		if err == nil && !keep {
			return errRolledBack
		}
		return err
	}
	return []func(q *simplequeue.SimpleQueue, jobs []simplequeue.NewJob, keep bool) error{
		func(q *simplequeue.SimpleQueue, jobs []simplequeue.NewJob, _ bool) error {
			_, err := q.InsertMany(ctx, jobs)
			return err
		},
		func(q *simplequeue.SimpleQueue, jobs []simplequeue.NewJob, keep bool) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := q.InsertManyTx(ctx, tx, jobs)
				return end(err, keep)
			})
		},
		func(q *simplequeue.SimpleQueue, jobs []simplequeue.NewJob, keep bool) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			_, err = q.InsertManySQLTx(ctx, tx, jobs)
			if err := end(err, keep); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		},
		func(_ *simplequeue.SimpleQueue, jobs []simplequeue.NewJob, keep bool) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				for _, job := range jobs {
					if _, err := enqueue(ctx, tx, job); err != nil {
						return err
					}
				}
				return end(nil, keep)
			})
		},
	}
}

// Of many that insert at once, on every path, just as many get in as there is
// room for.
func TestBoundedQueueIsExact(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 30)
	q := newQueue(t, pool, simplequeue.Options{})
	const most = 100
	limit(t, q, most)
	others := newQueue(t, pool, simplequeue.Options{}) // which has not heard of it
	ways := boundedInserts(t, pool)
	var inserted, refused, rolledBack atomic.Int64
	var all sync.WaitGroup
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n := live(t, pool); n > most {
				t.Errorf("%d live jobs, the limit is %d", n, most)
			}
		}
	}()
	for n := range 64 {
		all.Go(func() {
			for i := range 6 {
				by := []*simplequeue.SimpleQueue{q, others}[n%2]
				jobs := repeat(1+rand.IntN(3), simplequeue.NewJob{Queue: "a", Delay: time.Duration(i%2) * time.Hour})
				if i%3 == 0 {
					jobs[0].UniqueKey = fmt.Sprint(n, i)
				}
				err := ways[n/2%len(ways)](by, jobs, i%2 != 0)
				switch {
				case err == nil:
					inserted.Add(int64(len(jobs)))
				case errors.Is(err, errRolledBack):
					rolledBack.Add(1)
				case errors.Is(err, simplequeue.ErrQueueFull), sqlState(err) == "53400":
					refused.Add(1)
				default:
					t.Errorf("insert: %v", err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	<-watched
	t.Logf("%d inserted, %d refused, %d rolled back", inserted.Load(), refused.Load(), rolledBack.Load())
	for inserted.Load() < most { // what was refused meanwhile may have met slots that were given back
		insert(t, q, simplequeue.NewJob{Queue: "a"})
		inserted.Add(1)
	}
	_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
	mustBeFull(t, err, most)
	if n := live(t, pool); n != most || inserted.Load() != most {
		t.Errorf("%d live jobs of %d inserted, want %d", n, inserted.Load(), most)
	}
	slotsAddUp(t, pool)
}

// A job has its slot until it has ended, whichever way, and no longer.
func TestBoundedQueueHasRoomWhenAJobHasEnded(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	results := make(chan error)
	opts := handler("a", func(ctx context.Context, _ *simplequeue.Job) error {
		select {
		case err := <-results:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	opts.JanitorInterval = time.Hour
	q := newQueue(t, pool, opts)
	limit(t, q, 1)
	stop := start(t, q)
	full := func() {
		t.Helper()
		_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
		mustBeFull(t, err, 1)
		slotsAddUp(t, pool)
	}
	later := simplequeue.RetryAfter(time.Hour, errors.New("later"))
	for name, results2 := range map[string][]error{
		"completed": {nil}, "cancelled": {simplequeue.Cancel(nil)}, "failed": {later, later, later}, "rescheduled": {simplequeue.RescheduleAfter(time.Hour), nil},
	} {
		id := insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Hour})
		for _, result := range results2 {
			awaitState(t, q, id, simplequeue.StateWaiting)
			full()
			execute(t, pool, "UPDATE simplequeue.job_waiting SET run_at = now()")
			awaitState(t, q, id, simplequeue.StateRunning)
			full()
			results <- result
			eventually(t, name, func() bool { return state(t, q, id) != simplequeue.StateRunning })
		}
	}
	// Cancelled waiting, running, and retained nowhere.
	for _, job := range []simplequeue.NewJob{{Queue: "a", Delay: time.Hour}, {Queue: "a"}, {Queue: "a", Retention: simplequeue.Retention{DeadLetter: simplequeue.KeepNothing}}} {
		id := insert(t, q, job)
		if job.Delay == 0 {
			awaitState(t, q, id, simplequeue.StateRunning)
		}
		full()
		if _, err := q.Cancel(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "cancelled", func() bool { s := state(t, q, id); return s == "" || s.Terminal() })
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// Cancelled pending, and reaped.
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	full()
	if _, err := q.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	insert(t, q, simplequeue.NewJob{Queue: "a", MaxAttempts: 1})
	execute(t, pool, `INSERT INTO simplequeue.job_running
		(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count, crash_count,
		 payload_bytes, priority, lane, queue, kind, props)
		SELECT 1, now() - interval '1 hour', id, seq, created_at, gen_random_uuid(), 1000, 1, max_attempts, 0, 0,
		       payload_bytes, priority, lane, queue, kind, props FROM simplequeue.job_queue`,
		"DELETE FROM simplequeue.job_queue",
		"UPDATE simplequeue.job_sweep SET swept_at = clock_timestamp(), continuous_since = now() - interval '1 hour' WHERE name = 'reaper'")
	full()
	r, err := reaper.New(pool, reaper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Once(t.Context()); err != nil || got.Failed != 1 {
		t.Fatalf("reaper: %+v, %v", got, err)
	}
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	full()
}

// An open transaction that has inserted into a bounded queue, and one that was
// refused, hold up neither claims nor outcomes nor other inserts; what was
// refused can go on in its transaction.
func TestBoundedQueueBesideOpenTransactions(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for name, insertSQL := range map[string]func(q *simplequeue.SimpleQueue, jobs []simplequeue.NewJob) (func(...simplequeue.NewJob) error, func(commit bool)){
		"pgx": func(q *simplequeue.SimpleQueue, _ []simplequeue.NewJob) (func(...simplequeue.NewJob) error, func(bool)) {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return func(jobs ...simplequeue.NewJob) error {
					_, err := q.InsertManyTx(t.Context(), tx, jobs)
					return err
				}, func(commit bool) {
					end := tx.Rollback
					if commit {
						end = tx.Commit
					}
					if err := end(t.Context()); err != nil {
						t.Error(err)
					}
				}
		},
		"lib/pq": func(q *simplequeue.SimpleQueue, _ []simplequeue.NewJob) (func(...simplequeue.NewJob) error, func(bool)) {
			tx, err := openSQL(t, "postgres", pool).Begin()
			if err != nil {
				t.Fatal(err)
			}
			return func(jobs ...simplequeue.NewJob) error {
					_, err := q.InsertManySQLTx(t.Context(), tx, jobs)
					return err
				}, func(commit bool) {
					end := tx.Rollback
					if commit {
						end = tx.Commit
					}
					if err := end(); err != nil {
						t.Error(err)
					}
				}
		},
	} {
		q := newQueue(t, pool, handler("a", nothing))
		limit(t, q, simplequeue.Unlimited)
		limit(t, q, 3)
		put, end := insertSQL(q, nil)
		if err := put(simplequeue.NewJob{Queue: "a"}, simplequeue.NewJob{Queue: "a"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		refused, endRefused := insertSQL(q, nil)
		for range 3 {
			mustBeFull(t, refused(simplequeue.NewJob{Queue: "a"}, simplequeue.NewJob{Queue: "a"}), 3)
		}
		stop := start(t, q)
		for range 5 { // the one slot that is left does
			awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "a"}), simplequeue.StateCompleted)
		}
		end(false)
		if err := refused(simplequeue.NewJob{Queue: "a"}, simplequeue.NewJob{Queue: "b"}); err != nil {
			t.Errorf("%s: an insert after a refused one: %v", name, err)
		}
		endRefused(true)
		eventually(t, "six jobs have run", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == 6 })
		slotsAddUp(t, pool)
		if err := stop(); err != nil {
			t.Error(err)
		}
		execute(t, pool, "DELETE FROM simplequeue.job_queue_archive")
	}
}

// A list goes in as a whole or not at all; duplicates need no room.
func TestBoundedQueueAndLists(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	limit(t, q, 3)
	keyed := simplequeue.NewJob{Queue: "a", UniqueKey: "k"}
	id := insert(t, q, keyed)
	list := []simplequeue.NewJob{keyed, {Queue: "b"}, {Queue: "a"}, keyed, {Queue: "a", Delay: time.Hour}}
	_, err := q.InsertMany(t.Context(), append(list, simplequeue.NewJob{Queue: "a"}))
	mustBeFull(t, err, 3)
	if live(t, pool) != 1 || len(counts(t, q, "b")) != 0 {
		t.Error("some of a refused list was inserted")
	}
	results, err := q.InsertMany(t.Context(), list)
	if err != nil || !results[0].Duplicate || !results[3].Duplicate || results[2].Duplicate {
		t.Fatalf("InsertMany = %+v, %v", results, err)
	}
	mustBeDuplicate(t, q, keyed, id)
	keyed.Unique.OnConflict = simplequeue.ConflictReplace
	mustMeet(t, func(job simplequeue.NewJob) (simplequeue.Inserted, error) { return q.Insert(t.Context(), job) }, keyed, simplequeue.Inserted{ID: id, Replaced: true})
	slotsAddUp(t, pool)
	if _, err := q.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	slotsAddUp(t, pool)
	_, err = q.InsertMany(t.Context(), repeat(10_000, simplequeue.NewJob{Queue: "a"}))
	mustBeFull(t, err, 3)
	limit(t, q, 20_000)
	if _, err := q.InsertMany(t.Context(), repeat(10_000, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Error(err)
	}
	slotsAddUp(t, pool)
}

// A limit can be raised and lowered while jobs come and go: after it was lowered
// none is inserted until there are fewer than it allows.
func TestQueueLimitIsChanged(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	var jobs []uuid.UUID
	add := func(room int) {
		t.Helper()
		for range room {
			jobs = append(jobs, insert(t, q, simplequeue.NewJob{Queue: "a"}))
		}
		_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
		if !errors.Is(err, simplequeue.ErrQueueFull) {
			t.Errorf("error %v with %d jobs, want that it is full", err, len(jobs))
		}
		slotsAddUp(t, pool)
	}
	cancel := func(n int) {
		t.Helper()
		for _, id := range jobs[:n] {
			if _, err := q.Cancel(t.Context(), id, ""); err != nil {
				t.Fatal(err)
			}
		}
		jobs = jobs[n:]
	}
	limit(t, q, 5)
	add(5)
	limit(t, q, 2)
	add(0)
	cancel(3)
	add(0)
	cancel(1)
	add(1)
	limit(t, q, 1)
	add(0)
	limit(t, q, 4)
	add(2)
	limit(t, q, simplequeue.Unlimited)
	jobs = append(jobs, insert(t, q, simplequeue.NewJob{Queue: "a"}))
	cancel(5)
	limit(t, q, 1)
	add(1)

	for _, n := range []int{0, -2, 1_000_001} {
		var invalid *simplequeue.InvalidOptionError
		if err := q.SetQueueLimit(t.Context(), "a", n); !errors.As(err, &invalid) {
			t.Errorf("limit %d: %v", n, err)
		}
	}
	if err := q.SetQueueLimit(t.Context(), "a*", 1); err == nil {
		t.Error("a name that none can have was taken")
	}
}

// While there are more live jobs than a lowered limit allows, none gets in,
// however many try, although slots are free.
func TestNoneGetsInOverALoweredLimit(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 16)
	q := newQueue(t, pool, simplequeue.Options{})
	limit(t, q, 5)
	jobs := repeat(5, simplequeue.NewJob{Queue: "a"})
	jobs[3].Kind, jobs[4].Kind = "ends", "ends"
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	limit(t, q, 2)
	if n, err := q.CancelMatching(t.Context(), simplequeue.Filter{Queue: "a", Kind: "ends"}, ""); err != nil || n != 2 {
		t.Fatalf("%d cancelled, %v", n, err)
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 20 {
				_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
				mustBeFull(t, err, 2)
			}
		})
	}
	all.Wait()
	slotsAddUp(t, pool)
}

// However far a limit is lowered, an insert looks at a thousand slots at most:
// the janitor removes what is left over.
func TestJanitorRemovesSlotsOfALoweredLimit(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	limit(t, q, 1500)
	if _, err := q.InsertMany(t.Context(), repeat(1500, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Fatal(err)
	}
	limit(t, q, 1)
	if _, err := q.CancelMatching(t.Context(), simplequeue.Filter{Queue: "a"}, ""); err != nil {
		t.Fatal(err)
	}
	_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
	mustBeFull(t, err, 1)
	slotsAddUp(t, pool)
	j, err := janitor.New(pool, janitor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_slot"); n != 1 {
		t.Errorf("%d slots are left, want 1", n)
	}
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	_, err = q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
	mustBeFull(t, err, 1)
	slotsAddUp(t, pool)
}

// While limits change, jobs end and transactions roll back, the slots always add
// up, and no more jobs than any of the limits allow are live.
func TestQueueLimitsUnderLoad(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	q := newQueue(t, pool, handler("a", nothing))
	limit(t, q, 20)
	start(t, q)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 30 {
				if n == 0 {
					limit(t, q, 5+rand.IntN(16))
				}
				err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
					_, err := q.InsertManyTx(context.Background(), tx, repeat(1+rand.IntN(4), simplequeue.NewJob{Queue: "a"}))
					if err == nil && i%3 == 0 {
						return errRolledBack
					}
					return err
				})
				if err != nil && !errors.Is(err, simplequeue.ErrQueueFull) && !errors.Is(err, errRolledBack) {
					t.Errorf("insert: %v", err)
				}
				if n := live(t, pool); n > 20 {
					t.Errorf("%d live jobs", n)
				}
			}
		})
	}
	all.Wait()
	slotsAddUp(t, pool)
	eventually(t, "all have run", func() bool { return live(t, pool) == 0 })
	limit(t, q, 7)
	if _, err := q.InsertMany(t.Context(), repeat(7, simplequeue.NewJob{Queue: "a", Delay: time.Hour})); err != nil {
		t.Error(err)
	}
	_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
	mustBeFull(t, err, 7)
	slotsAddUp(t, pool)
}

// An insert that does not know of a new limit does not get past it: by the pool
// it finds out by itself, in a caller's transaction it fails once, as
// transactions may, even where the limit is newer than its snapshot.
func TestNewLimitHoldsForWhoDoesNotKnowIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	others := map[string]*simplequeue.SimpleQueue{}
	for _, name := range []string{"group", "copy", "keyed", "tx", "fresh"} {
		others[name] = newQueue(t, pool, simplequeue.Options{})
	}
	inTx := func(q *simplequeue.SimpleQueue, level pgx.TxIsoLevel, between func()) error {
		return pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
			if between != nil {
				if _, err := tx.Exec(t.Context(), "SELECT"); err != nil {
					return err
				}
				between()
			}
			_, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a", Priority: 5})
			return err
		})
	}
	before := insert(t, q, simplequeue.NewJob{Queue: "a"})
	if err := inTx(others["tx"], pgx.ReadCommitted, nil); err != nil { // it knows that there is no limit
		t.Fatal(err)
	}
	for _, c := range []struct {
		insert func() error
		name   string
	}{
		{name: "group", insert: func() error {
			_, err := others["group"].Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
			return err
		}},
		{name: "copy", insert: func() error {
			_, err := others["copy"].InsertMany(t.Context(), repeat(500, simplequeue.NewJob{Queue: "a"}))
			return err
		}},
		{name: "keyed", insert: func() error {
			_, err := others["keyed"].Insert(t.Context(), simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
			return err
		}},
		{name: "fresh", insert: func() error { return inTx(others["fresh"], pgx.ReadCommitted, nil) }},
	} {
		limit(t, q, 1)
		insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "taken"})
		mustBeFull(t, c.insert(), 1)
		if n := live(t, pool); n != 3 { // two were there before the limit
			t.Errorf("%s: %d live jobs", c.name, n)
		}
		limit(t, q, simplequeue.Unlimited)
		if _, err := q.CancelMatching(t.Context(), simplequeue.Filter{UniqueKey: "taken"}, ""); err != nil {
			t.Fatal(err)
		}
	}

	limit(t, q, 1)
	if err := inTx(others["tx"], pgx.ReadCommitted, nil); sqlState(err) != "40001" {
		t.Errorf("a transaction of who does not know the limit: %v, want 40001", err)
	}
	if err := inTx(others["tx"], pgx.ReadCommitted, nil); err != nil {
		t.Errorf("the transaction made again: %v", err)
	}
	mustBeFull(t, inTx(others["tx"], pgx.ReadCommitted, nil), 1)

	// A new lane of a queue that has got its limit after the snapshot.
	err := inTx(others["group"], pgx.RepeatableRead, func() {
		if err := q.SetQueueLimit(t.Context(), "new", 1); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil && !errors.Is(err, simplequeue.ErrQueueFull) {
		t.Errorf("insert: %v", err)
	}
	err = pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SELECT FROM simplequeue.job_lane"); err != nil {
			return err
		}
		if err := q.SetQueueLimit(t.Context(), "newer", 1); err != nil {
			return err
		}
		_, err := others["tx"].InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "newer", Priority: 9})
		return err
	})
	if sqlState(err) != "40001" {
		t.Errorf("a lane made after the limit by an older snapshot: %v, want 40001", err)
	}

	// A limit waits for the transaction that makes the first lane.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "young"}); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if err := q.SetQueueLimit(short, "young", 1); err == nil {
		t.Error("the limit did not wait for the transaction that makes its lane")
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.SetQueueLimit(t.Context(), "young", 1); err != nil {
		t.Error(err)
	}
	if got := state(t, q, before); got != simplequeue.StatePending {
		t.Errorf("the job from before is %s", got)
	}
}

// Inserts that share a transaction with one that meets a limit it did not know
// of go in all the same.
func TestNewLimitDisturbsNoNeighbour(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 1)
	q := newQueue(t, pool, simplequeue.Options{})
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	limit(t, newQueue(t, direct, simplequeue.Options{}), 1)
	release := holdAll(t, q, pool)
	var calls []*insertCall
	for i := range 20 {
		queue := "free"
		if i == 7 {
			queue = "a"
		}
		calls = append(calls, insertAside(t.Context(), q, simplequeue.NewJob{Queue: queue}))
	}
	awaitPending(t, q, len(calls))
	release()
	for i, c := range calls {
		if err := c.wait(t); err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

// Jobs of queues without a limit have nothing to do with slots, and their
// inserts send the statements that they always sent.
func TestUnboundedQueuesPayNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("b", nothing))
	limit(t, q, 5)
	start(t, q)
	if _, err := q.InsertMany(t.Context(), repeat(300, simplequeue.NewJob{Queue: "b"})); err != nil {
		t.Fatal(err)
	}
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "b"}), simplequeue.StateCompleted)
	eventually(t, "all have run", func() bool { return counts(t, q, "b")[simplequeue.StateCompleted] == 301 })
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job WHERE props IS NOT NULL"); n != 0 {
		t.Errorf("%d jobs carry something", n)
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_slot WHERE job_id IS NOT NULL"); n != 0 {
		t.Errorf("%d slots are taken", n)
	}
	if got := queryOne[string](t, pool, "SELECT string_agg(queue, ',') FROM simplequeue.job_lane"); got != "b" {
		t.Errorf("lanes %s, want b", got)
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for want := 2; want >= 1; want-- { // the first asks for the limits
			asked := &countingTx{Tx: tx}
			if _, err := q.InsertTx(t.Context(), asked, simplequeue.NewJob{Queue: "b"}); err != nil {
				return err
			}
			if asked.queries != want {
				t.Errorf("%d statements for an insert, want %d", asked.queries, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// countingTx counts the statements of a transaction.
type countingTx struct {
	pgx.Tx
	queries int
}

func (c *countingTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	c.queries++
	return c.Tx.Query(ctx, sql, args...)
}
