package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// insertCall is an insert on its way.
type insertCall struct {
	done    chan struct{}
	results []simplequeue.Inserted
	err     error
}

func (c *insertCall) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		t.Fatal("an insert did not return within 30 s")
	}
	return c.err
}

func insertAside(ctx context.Context, q *simplequeue.SimpleQueue, jobs ...simplequeue.NewJob) *insertCall {
	c := &insertCall{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.results, c.err = q.InsertMany(ctx, jobs)
	}()
	return c
}

// holdAll takes every connection of a pool, so that inserts gather behind one
// that finds none, and returns what gives one back. Whatever is left is given
// back when the test ends.
func holdAll(t testing.TB, q *simplequeue.SimpleQueue, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	var held []*pgxpool.Conn
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough have gathered")
	alone := insertAside(ctx, q, simplequeue.NewJob{Queue: "alone"})
	awaitFlushers(t, q, 1)
	release = func() {
		cancel(cause)
		if err := alone.wait(t); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || errors.Is(err, simplequeue.ErrInsertUnknown) {
			t.Errorf("error %v, want the context's and its cause", err)
		}
		held[0].Release()
		held = held[1:]
	}
	t.Cleanup(func() {
		for len(held) > 0 {
			release()
		}
	})
	return release
}

func awaitPending(t testing.TB, q *simplequeue.SimpleQueue, n int) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " inserts are pending"), func() bool { calls, _ := q.PendingInserts(); return calls == n })
}

func awaitFlushers(t testing.TB, q *simplequeue.SimpleQueue, n int) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " are there to insert"), func() bool { _, flushers := q.PendingInserts(); return flushers == n })
}

// twoPools are pools on one database: the first, of a size, is the queue's.
func twoPools(t testing.TB, size int32) (pool, direct *pgxpool.Pool) {
	t.Helper()
	url := pgtest.Database(t)
	return pgtest.Pool(t, url, size), pgtest.Pool(t, url, 4)
}

// Calls that have gathered go in together, in their order; each gets the
// results of its own jobs, and nothing stays behind.
func TestConcurrentInsertsShareATransaction(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 1)
	q := newQueue(t, pool, simplequeue.Options{})
	release := holdAll(t, q, pool)
	var calls []*insertCall
	for i := range 64 {
		calls = append(calls, insertAside(t.Context(), q, simplequeue.NewJob{Queue: fmt.Sprint("q", i%3), Payload: 2 * i}, simplequeue.NewJob{Queue: "other", Payload: 2*i + 1}))
		awaitPending(t, q, i+1)
	}
	release()
	for i, c := range calls {
		if err := c.wait(t); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		for j, r := range c.results {
			if got := queryOne[int](t, direct, "SELECT payload::int FROM simplequeue.job_queue WHERE id = $1", r.ID); got != 2*i+j || r.Duplicate {
				t.Errorf("call %d, result %d (duplicate: %v) is that of job %d", i, j, r.Duplicate, got)
			}
		}
	}
	if n := queryOne[int](t, direct, "SELECT count(DISTINCT xmin::text) FROM simplequeue.job_queue"); n != 1 {
		t.Errorf("inserted by %d transactions, want 1", n)
	}
	if n := queryOne[int](t, direct, `SELECT count(*) FROM (
		SELECT payload::int AS n, row_number() OVER (ORDER BY seq) - 1 AS place FROM simplequeue.job_queue) AS j WHERE n = place`); n != 128 {
		t.Errorf("%d of 128 jobs are in the order of the calls", n)
	}
	awaitFlushers(t, q, 0)
}

// What the server refuses for one job it refuses for nobody else; the jobs of
// one call stay together. It is the same for groups that go in by COPY.
func TestRefusedJobOfAGroupFailsAlone(t *testing.T) {
	t.Parallel()
	for _, n := range []int{63, 300} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			pool, direct := twoPools(t, 1)
			execute(t, direct, "ALTER TABLE simplequeue.job_queue ADD CONSTRAINT not_bad CHECK (kind <> 'bad')")
			q := newQueue(t, pool, simplequeue.Options{})
			release := holdAll(t, q, pool)
			calls := make([]*insertCall, n)
			for i := range calls {
				jobs := []simplequeue.NewJob{{Queue: "a"}}
				switch i {
				case 20:
					jobs[0].Kind = "bad"
				case 40:
					jobs = []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", Kind: "bad"}, {Queue: "a"}}
				}
				calls[i] = insertAside(t.Context(), q, jobs...)
			}
			awaitPending(t, q, n)
			release()
			for i, c := range calls {
				err := c.wait(t)
				if bad := i == 20 || i == 40; bad && (sqlState(err) != "23514" || errors.Is(err, simplequeue.ErrInsertUnknown)) || !bad && err != nil {
					t.Errorf("call %d: error %v", i, err)
				}
			}
			if got := queryOne[int](t, direct, "SELECT count(*) FROM simplequeue.job_queue"); got != n-2 {
				t.Errorf("%d jobs inserted, want %d", got, n-2)
			}
		})
	}
}

// A caller that leaves before its job was taken knows that it is not inserted,
// and no goroutine waits for a connection that nobody wants any more.
func TestInsertLeftBeforeItWasTakenIsNotInserted(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 2)
	q := newQueue(t, pool, simplequeue.Options{})
	release := holdAll(t, q, pool)
	cause := errors.New("no more patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	leaving := []*insertCall{insertAside(ctx, q, simplequeue.NewJob{Queue: "left"}), insertAside(ctx, q, simplequeue.NewJob{Queue: "left"})}
	stays := insertAside(t.Context(), q, simplequeue.NewJob{Queue: "stays"})
	awaitPending(t, q, 3)
	cancel(cause)
	check := func(err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || errors.Is(err, simplequeue.ErrInsertUnknown) {
			t.Errorf("error %v, want the context's and its cause, without doubt", err)
		}
	}
	for _, c := range leaving {
		check(c.wait(t))
	}
	_, err := q.Insert(ctx, simplequeue.NewJob{Queue: "left"})
	check(err)
	release()
	if err := stays.wait(t); err != nil {
		t.Fatal(err)
	}
	if n := queryOne[int](t, direct, "SELECT count(*) FROM simplequeue.job_queue WHERE queue = 'left'"); n != 0 {
		t.Errorf("%d jobs of callers that left are inserted", n)
	}

	awaitFlushers(t, q, 0)
	release() // both connections are free; take them again
	holdAll(t, q, pool)
	ctx, stop := context.WithCancel(t.Context())
	last := insertAside(ctx, q, simplequeue.NewJob{Queue: "left"})
	awaitPending(t, q, 1)
	stop()
	if err := last.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
	awaitFlushers(t, q, 1) // the one that was there before
}

// slowAndBad makes the server refuse jobs of kind bad, and hold up those of kind
// slow until unblock is called.
func slowAndBad(t *testing.T, pool *pgxpool.Pool) (unblock func()) {
	t.Helper()
	execute(t, pool, "ALTER TABLE simplequeue.job_queue ADD CONSTRAINT not_bad CHECK (kind <> 'bad')",
		"CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END'",
		"CREATE TRIGGER slow BEFORE INSERT ON simplequeue.job_queue FOR EACH ROW WHEN (NEW.kind = 'slow') EXECUTE FUNCTION public.slow()")
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock(1)")
	}
	if err != nil {
		t.Fatal(err)
	}
	unblock = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	t.Cleanup(unblock)
	return unblock
}

// A caller that leaves while its job is under way is told at once that the
// outcome is open. What it does with its bytes then harms nobody, its neighbours
// are not disturbed, and a repetition by id waits for the outcome.
func TestInsertLeftUnderWayIsInDoubt(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 2)
	unblock := slowAndBad(t, direct)
	q := newQueue(t, pool, simplequeue.Options{})
	release := holdAll(t, q, pool)
	cause := errors.New("no more patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	raw := []byte("as it was")
	jobs := []simplequeue.NewJob{{Queue: "left", Raw: raw}}
	stays := insertAside(t.Context(), q, simplequeue.NewJob{Queue: "stays", Kind: "slow"})
	awaitPending(t, q, 1)
	leaves := insertAside(ctx, q, jobs...)
	awaitPending(t, q, 2)
	bad := insertAside(t.Context(), q, simplequeue.NewJob{Queue: "stays", Kind: "bad"}) // so that all are sent again
	awaitPending(t, q, 3)
	release()
	eventually(t, "the group is under way", func() bool { return waiting(t, direct, "INSERT INTO") == 1 })
	cancel(cause)
	err := leaves.wait(t)
	var unknown *simplequeue.InsertUnknownError
	if !errors.As(err, &unknown) || len(unknown.IDs) != 1 || !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Fatalf("error %v, want a doubt about one job, with the context's cause", err)
	}
	copy(raw, "scribbled")

	release()
	again := simplequeue.NewJob{ID: unknown.IDs[0], Queue: "left"}
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if r, err := q.Insert(short, again); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, simplequeue.ErrInsertUnknown) {
		t.Errorf("repeated while the first is under way: %+v, %v, want the context's error", r, err)
	}
	repeated := insertAside(t.Context(), q, again)
	unblock()
	if err := stays.wait(t); err != nil {
		t.Errorf("neighbour: %v", err)
	}
	if err := bad.wait(t); sqlState(err) != "23514" {
		t.Errorf("bad neighbour: %v", err)
	}
	if err := repeated.wait(t); err != nil || !repeated.results[0].Duplicate || repeated.results[0].ID != again.ID {
		t.Errorf("repeated: %+v, %v, want a duplicate", repeated.results, err)
	}
	if got := string(get(t, q, again.ID).Raw); got != "as it was" {
		t.Errorf("inserted %q, want the bytes at the time of the call", got)
	}
}

// An insert that its caller has left may yet be committed: its repetition waits
// for that, however the first has gone in.
func TestInsertLeftAtItsCommitIsRepeatedAfterIt(t *testing.T) {
	t.Parallel()
	for name, jobs := range map[string][]simplequeue.NewJob{
		"alone": {{Queue: "a", Kind: "slow"}},
		"list":  append(repeat(250, simplequeue.NewJob{Queue: "a"}), simplequeue.NewJob{Queue: "a", Kind: "slow"}),
		"keyed": {{Queue: "a", Kind: "slow", UniqueKey: "k"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, direct := twoPools(t, 2)
			q := newQueue(t, pool, simplequeue.Options{})
			insert(t, q, simplequeue.NewJob{Queue: "a"})
			execute(t, direct, `CREATE FUNCTION public.stubborn() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
					LOOP
						BEGIN
							PERFORM pg_advisory_xact_lock(1);
							RETURN NULL;
						EXCEPTION WHEN query_canceled THEN
						END;
					END LOOP;
				END$$`, `CREATE CONSTRAINT TRIGGER stubborn AFTER INSERT ON simplequeue.job_queue DEFERRABLE INITIALLY DEFERRED
				FOR EACH ROW WHEN (NEW.kind = 'slow') EXECUTE FUNCTION public.stubborn()`)
			tx, err := direct.Begin(t.Context())
			if err == nil {
				_, err = tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock(1)")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			ctx, cancel := context.WithCancel(t.Context())
			leaves := insertAside(ctx, q, jobs...)
			eventually(t, "it is being committed", func() bool {
				return queryOne[int](t, direct, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
			})
			cancel()
			var unknown *simplequeue.InsertUnknownError
			if err := leaves.wait(t); !errors.As(err, &unknown) || len(unknown.IDs) != len(jobs) {
				t.Fatalf("error %v, want a doubt about %d jobs", err, len(jobs))
			}
			// The next one is in another table: no index sees both.
			execute(t, direct, fmt.Sprintf("SELECT setval(pg_get_serial_sequence('simplequeue.job_queue', 'seq'), %d)", store.ChunkStart(1)))
			again := simplequeue.NewJob{ID: unknown.IDs[len(jobs)-1], Queue: "a"}
			short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer stop()
			if r, err := q.Insert(short, again); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, simplequeue.ErrInsertUnknown) {
				t.Errorf("repeated while the first is under way: %+v, %v, want the context's error", r, err)
			}
			repeated := insertAside(t.Context(), q, again)
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := repeated.wait(t); err != nil || !repeated.results[0].Duplicate {
				t.Errorf("repeated: %+v, %v, want a duplicate", repeated.results, err)
			}
			if n := queryOne[int](t, direct, "SELECT count(*) FROM simplequeue.job_queue"); n != 1+len(jobs) {
				t.Errorf("%d jobs, want %d", n, 1+len(jobs))
			}
		})
	}
}

// A statement that nobody waits for any more is stopped, and one that hangs is
// given up: neither holds a connection for long.
func TestGroupThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 2)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	release := holdAll(t, q, pool)
	unlock := lock(t, direct, "simplequeue.job_queue IN EXCLUSIVE MODE")
	ctx, cancel := context.WithCancel(t.Context())
	left := insertAside(ctx, q, simplequeue.NewJob{Queue: "a"})
	awaitPending(t, q, 1)
	release()
	release()
	eventually(t, "the insert is under way", func() bool { return waiting(t, direct, "INSERT INTO") == 1 })
	cancel()
	if err := left.wait(t); !errors.Is(err, simplequeue.ErrInsertUnknown) {
		t.Errorf("error %v, want ErrInsertUnknown", err)
	}
	began := time.Now()
	awaitFlushers(t, q, 0)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopped after %v, want at once", took)
	}

	q = newQueue(t, pool, simplequeue.Options{PollOnly: true})
	q.LimitGroups(300 * time.Millisecond)
	hangs := insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a"})
	if err := hangs.wait(t); !errors.Is(err, simplequeue.ErrInsertUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want a doubt for want of time", err)
	}
	awaitFlushers(t, q, 0)
	unlock()
	insert(t, q, simplequeue.NewJob{Queue: "a"})
}

// What was not sent when the time of a group was over is not in doubt.
func TestPartOfAGroupThatWasNotSentIsNotInDoubt(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 1)
	slowAndBad(t, direct)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	q.LimitGroups(3 * time.Second) // what is refused before the slow one is soon enough
	release := holdAll(t, q, pool)
	var calls []*insertCall
	for i, kind := range []string{"bad", "slow", "", ""} {
		calls = append(calls, insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a", Kind: kind}))
		awaitPending(t, q, i+1)
	}
	release()
	for i, c := range calls {
		err := c.wait(t)
		if err == nil || errors.Is(err, simplequeue.ErrInsertUnknown) != (i == 1) {
			t.Errorf("call %d: error %v", i, err)
		}
	}
}

// The answer to the commit of a group is lost: each caller has its own doubt.
func TestLostAnswerToAGroupIsEachCallersDoubt(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	proxy := pgtest.NewProxy(t, url)
	pool := sentAtOnce(t, proxy.URL())
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	release := holdAll(t, q, pool)
	var calls []*insertCall
	for i := range 9 {
		calls = append(calls, insertAside(t.Context(), q, repeat(1+i%2, simplequeue.NewJob{Queue: "lost", Kind: fmt.Sprint(i)})...))
	}
	awaitPending(t, q, len(calls))
	unlock := lock(t, direct, "simplequeue.job_queue IN EXCLUSIVE MODE")
	release()
	eventually(t, "the group is under way", func() bool { return waiting(t, direct, "INSERT INTO") == 1 })
	proxy.DropReplies()
	unlock()
	eventually(t, "it is committed", func() bool { return queryOne[int](t, direct, "SELECT count(*) FROM simplequeue.job_queue") == 13 })
	proxy.Cut() // healed, it could still hand on an answer that comes late
	for i, c := range calls {
		err := c.wait(t)
		var unknown *simplequeue.InsertUnknownError
		if !errors.As(err, &unknown) {
			t.Fatalf("call %d: error %v, want a doubt", i, err)
		}
		got, err := queryRows[string](t, direct, "SELECT id::text FROM simplequeue.job_queue WHERE kind = $1 ORDER BY seq", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, id := range unknown.IDs {
			ids = append(ids, id.String())
		}
		if !slices.Equal(ids, got) {
			t.Errorf("call %d is in doubt about %v, its jobs are %v", i, ids, got)
		}
		if inner := new(simplequeue.InsertUnknownError); errors.As(unknown.Err, &inner) {
			t.Errorf("call %d: the error carries another doubt, about %v", i, inner.IDs)
		}
	}
}

func queryRows[T any](t testing.TB, pool *pgxpool.Pool, query string, args ...any) ([]T, error) {
	t.Helper()
	rows, err := pool.Query(t.Context(), query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

// Without a connection nobody is in doubt, and nobody waits.
func TestGroupWithoutAConnectionIsNotInDoubt(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, url)
	proxy.Cut()
	q := newQueue(t, pgtest.Pool(t, proxy.URL(), 4), simplequeue.Options{PollOnly: true})
	var calls []*insertCall
	for range 16 {
		calls = append(calls, insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a"}))
	}
	for _, c := range calls {
		if err := c.wait(t); err == nil || errors.Is(err, simplequeue.ErrInsertUnknown) {
			t.Errorf("error %v, want one without doubt", err)
		}
	}
	awaitFlushers(t, q, 0)
	proxy.Heal()
	insert(t, q, simplequeue.NewJob{Queue: "a"})
}

// A group in need of another connection that cannot be had waits for the one
// that there is.
func TestGroupMakesDoWithTheConnectionsThereAre(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	made := false // connections are made one after the other
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if made {
			refused.Add(1)
			return errors.New("no more connections")
		}
		made = true
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	unlock := lock(t, direct, "simplequeue.job_queue IN EXCLUSIVE MODE")
	calls := []*insertCall{insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a"})}
	eventually(t, "the first is under way", func() bool { return waiting(t, direct, "INSERT INTO") == 1 })
	calls = append(calls, insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a"}))
	eventually(t, "a second connection is refused", func() bool { return refused.Load() > 0 })
	unlock()
	for _, c := range calls {
		if err := c.wait(t); err != nil {
			t.Error(err)
		}
	}
	awaitFlushers(t, q, 0)
}

// An insert that waits for a unique key holds up no plain one, with two
// connections.
func TestInsertThatWaitsForAKeyHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	pool, direct := twoPools(t, 2)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	tx, err := direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a", UniqueKey: "k"}); err != nil {
		t.Fatal(err)
	}
	keyed := insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
	eventually(t, "the keyed insert waits", func() bool { return waiting(t, direct, "WITH input AS MATERIALIZED") == 1 })
	var calls []*insertCall
	for range 64 {
		calls = append(calls, insertAside(t.Context(), q, simplequeue.NewJob{Queue: "a"}))
	}
	for _, c := range calls {
		if err := c.wait(t); err != nil {
			t.Error(err)
		}
	}
	if n := waiting(t, direct, "WITH input AS MATERIALIZED"); n != 1 {
		t.Errorf("%d keyed inserts wait, want 1: the test proves nothing", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := keyed.wait(t); err != nil || keyed.results[0].Duplicate {
		t.Errorf("keyed insert: %+v, %v", keyed.results, err)
	}
}

// Whatever the moment at which callers leave, what they are told is true.
func TestCallersThatLeaveAtAnyMomentAreToldTheTruth(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	queues := []*simplequeue.SimpleQueue{newQueue(t, pool, simplequeue.Options{}), newQueue(t, pool, simplequeue.Options{})}
	const callers, rounds = 16, 25
	type told struct {
		id  uuid.UUID
		err error
	}
	var mu sync.Mutex
	outcomes := map[string]told{}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for round := range rounds {
				kind := fmt.Sprint(i, "-", round)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(30_000))*time.Microsecond)
				r, err := queues[i%2].Insert(ctx, simplequeue.NewJob{Queue: "a", Kind: kind})
				cancel()
				mu.Lock()
				outcomes[kind] = told{r.ID, err}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, q := range queues {
		awaitFlushers(t, q, 0)
	}
	sure, open, not := 0, 0, 0
	for kind, o := range outcomes {
		ids, err := queryRows[string](t, pool, "SELECT id::text FROM simplequeue.job_queue WHERE kind = $1", kind)
		if err != nil {
			t.Fatal(err)
		}
		var unknown *simplequeue.InsertUnknownError
		switch {
		case o.err == nil:
			sure++
			if len(ids) != 1 || ids[0] != o.id.String() {
				t.Errorf("inserted as %v, found %v", o.id, ids)
			}
		case errors.As(o.err, &unknown):
			open++
			if len(ids) > 1 || len(ids) == 1 && ids[0] != unknown.IDs[0].String() {
				t.Errorf("in doubt as %v, found %v", unknown.IDs, ids)
			}
		default:
			not++
			if len(ids) != 0 || !errors.Is(o.err, context.DeadlineExceeded) {
				t.Errorf("not inserted (%v), found %v", o.err, ids)
			}
		}
	}
	t.Logf("%d inserted, %d in doubt, %d not inserted", sure, open, not)
}

// counting counts what is sent.
type counting struct{ batches, others atomic.Int64 }

func (c *counting) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.batches.Add(1)
	return ctx
}
func (*counting) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*counting) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

func (c *counting) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.others.Add(1)
	return ctx
}
func (*counting) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (c *counting) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	c.others.Add(1)
	return ctx
}
func (*counting) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}

// A lone insert is one message and its answer.
func TestLoneInsertIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	var sent counting
	config.ConnConfig.Tracer, config.MaxConns = &sent, 1
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	insert(t, q, simplequeue.NewJob{Queue: "a"}) // prepares the statements
	sent.batches.Store(0)
	sent.others.Store(0)
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	if b, o := sent.batches.Load(), sent.others.Load(); b != 1 || o != 0 {
		t.Errorf("sent %d batches and %d others, want 1 and 0", b, o)
	}
}
