package simplequeue_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// runs records which jobs ran, and whether two of one key overlapped.
type runs struct {
	mu     sync.Mutex
	inside map[string]int
	order  map[string][]uuid.UUID // by key, attempts included
	most   int                    // jobs of a key at once
	all    int                    // jobs at once
	mostOf int
}

func newRuns() *runs { return &runs{inside: map[string]int{}, order: map[string][]uuid.UUID{}} }

func (r *runs) enter(job *simplequeue.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inside[job.OrderKey]++
	r.all++
	r.most, r.mostOf = max(r.most, r.inside[job.OrderKey]), max(r.mostOf, r.all)
	r.order[job.OrderKey] = append(r.order[job.OrderKey], job.ID)
}

func (r *runs) leave(job *simplequeue.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inside[job.OrderKey]--
	r.all--
}

func (r *runs) of(key string) []uuid.UUID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order[key])
}

// handler runs jobs of a queue, each for a while.
func (r *runs) handler(queue string, process func(job *simplequeue.Job) error) simplequeue.Handler {
	return simplequeue.HandlerFunc(queue, func(_ context.Context, job *simplequeue.Job) error {
		r.enter(job)
		defer r.leave(job)
		return process(job)
	})
}

func idsOf(list []simplequeue.Inserted) []uuid.UUID {
	ids := make([]uuid.UUID, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	return ids
}

func awaitCompleted(t *testing.T, q *simplequeue.SimpleQueue, queue string, n int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d jobs of %s are completed", n, queue), func() bool {
		return counts(t, q, queue)[simplequeue.StateCompleted] == n
	})
}

// Jobs of a key run one at a time, in the order of the array and of the inserts;
// keys run side by side.
func TestOrderKeyRunsInOrder(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error {
		time.Sleep(time.Millisecond)
		return nil
	})}})
	want := map[string][]uuid.UUID{}
	var jobs []simplequeue.NewJob
	for i := range 100 {
		jobs = append(jobs, simplequeue.NewJob{Queue: "q", OrderKey: fmt.Sprint("k", i%4), Priority: 9 - i/4%10})
	}
	list, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range idsOf(list) {
		want[jobs[i].OrderKey] = append(want[jobs[i].OrderKey], id)
	}
	for range 3 {
		want["k0"] = append(want["k0"], insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k0"}))
	}
	start(t, q)
	awaitCompleted(t, q, "q", 103)
	for key, ids := range want {
		if got := r.of(key); !slices.Equal(got, ids) {
			t.Errorf("%s ran as\n%v, inserted as\n%v", key, got, ids)
		}
	}
	if r.most != 1 || r.mostOf < 2 {
		t.Errorf("%d jobs of a key and %d jobs at once, want 1 and more", r.most, r.mostOf)
	}
	awaitNoGates(t, pool)
}

// awaitNoGates waits until gates have no row left.
func awaitNoGates(t *testing.T, pool querier) {
	t.Helper()
	eventually(t, "gates have no rows", func() bool {
		var n int
		if err := pool.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM simplequeue.job_gated)
			+ (SELECT count(*) FROM simplequeue.job_gate_hold) + (SELECT count(*) FROM simplequeue.job_gate_look)`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// A job behind others says so; the first waits like any other job.
func TestAJobBehindOthersSaysSo(t *testing.T) {
	t.Parallel()
	running, goOn := make(chan struct{}, 1), make(chan struct{})
	q := newQueue(t, pgtest.New(t), handler("q", func(context.Context, *simplequeue.Job) error {
		running <- struct{}{}
		<-goOn
		return nil
	}))
	first := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "c7"})
	second := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "c7"})
	start(t, q)
	<-running
	info := get(t, q, second)
	if info.State != simplequeue.StateWaiting || info.Reason != `behind others of the order key "c7"` || info.OrderKey != "c7" || !info.RunAt.IsZero() {
		t.Errorf("%s, %q, key %q, at %v", info.State, info.Reason, info.OrderKey, info.RunAt)
	}
	if s := state(t, q, first); s != simplequeue.StateRunning {
		t.Errorf("the first is %s", s)
	}
	close(goOn)
	awaitCompleted(t, q, "q", 2)
}

// The first of a key holds it while it backs off, is put off or delayed.
func TestTheFirstHoldsItsKey(t *testing.T) {
	t.Parallel()
	r := newRuns()
	did := map[uuid.UUID]int{}
	q := newQueue(t, pgtest.New(t), simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(job *simplequeue.Job) error {
		did[job.ID]++ // one at a time
		switch did[job.ID] {
		case 1:
			return simplequeue.RetryAfter(50*time.Millisecond, errors.New("no"))
		case 2:
			return simplequeue.RescheduleAfter(50 * time.Millisecond)
		}
		return nil
	})}})
	a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Delay: 100 * time.Millisecond})
	b := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	start(t, q)
	awaitCompleted(t, q, "q", 2)
	if got := r.of("k"); !slices.Equal(got, []uuid.UUID{a, a, a, b, b, b}) {
		t.Errorf("ran as %v of %v and %v", got, a, b)
	}
}

// RescheduleToTail gives the place up; without a key it is RescheduleAfter.
func TestRescheduleToTail(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(job *simplequeue.Job) error {
		if job.Raw != nil && job.ReprocessCount == 0 {
			return simplequeue.RescheduleToTail(30 * time.Millisecond)
		}
		if job.Attempt != 1 {
			t.Errorf("attempt %d", job.Attempt)
		}
		return nil
	})}})
	a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Raw: []byte("later")})
	b := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	c := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
	insert(t, q, simplequeue.NewJob{Queue: "q", Raw: []byte("later")})
	start(t, q)
	awaitCompleted(t, q, "q", 4)
	if got := r.of("k"); !slices.Equal(got, []uuid.UUID{a, b, c, a}) {
		t.Errorf("ran as %v of %v", got, []uuid.UUID{a, b, c})
	}
	awaitNoGates(t, pool)
}

// A dead head lets the next one go, or keeps its key closed until it is released.
func TestADeadHead(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]struct {
		err    error
		blocks bool
	}{
		"failed":        {errors.New("no"), true},
		"unprocessable": {simplequeue.Unprocessable(nil), true},
		"critical":      {simplequeue.Critical(nil), true},
		"cancelled":     {simplequeue.Cancel(nil), false},
	} {
		for _, block := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, block %t", name, block), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.New(t)
				r := newRuns()
				opts := simplequeue.Options{
					MaxAttempts: 1, Queues: map[string]simplequeue.QueueOptions{"q": {BlockDead: block}},
					Handlers: []simplequeue.Handler{r.handler("q", func(job *simplequeue.Job) error {
						if job.Raw != nil {
							return end.err
						}
						return nil
					})},
				}
				q := newQueue(t, pool, opts)
				a := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k", Raw: []byte("bad")})
				insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "k"})
				insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "other"})
				start(t, q)
				if !block || !end.blocks {
					awaitCompleted(t, q, "q", 2)
					awaitNoGates(t, pool)
					return
				}
				awaitCompleted(t, q, "q", 1)
				var keys []simplequeue.BlockedKey
				eventually(t, "the key is blocked", func() bool {
					var err error
					if keys, err = q.BlockedKeys(t.Context(), "q"); err != nil {
						t.Fatal(err)
					}
					return len(keys) > 0
				})
				if k := keys[0]; len(keys) != 1 || k.Queue != "q" || k.OrderKey != "k" || k.JobID != a || k.Since.IsZero() {
					t.Errorf("blocked: %+v", keys)
				}
				if all, err := q.BlockedKeys(t.Context(), ""); err != nil || len(all) != 1 {
					t.Errorf("of all queues: %v, %v", all, err)
				}
				if none, err := q.BlockedKeys(t.Context(), "other"); err != nil || len(none) != 0 {
					t.Errorf("of another queue: %v, %v", none, err)
				}
				if err := q.ReleaseKey(t.Context(), "q", "other"); !errors.Is(err, simplequeue.ErrNotFound) {
					t.Errorf("released a key that is not blocked: %v", err)
				}
				if err := q.ReleaseKey(t.Context(), "q", "k"); err != nil {
					t.Fatal(err)
				}
				awaitCompleted(t, q, "q", 2)
				awaitNoGates(t, pool)
			})
		}
	}
}

// Cancelling the first, or one behind it, lets the others go on.
func TestCancelOfOrderedJobs(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	inserter := newQueue(t, pool, simplequeue.Options{})
	var jobs []uuid.UUID
	for range 4 {
		jobs = append(jobs, insert(t, inserter, simplequeue.NewJob{Queue: "q", OrderKey: "k", UniqueKey: fmt.Sprint(len(jobs)), Fingerprint: "f"}))
	}
	delayed := insert(t, inserter, simplequeue.NewJob{Queue: "q", OrderKey: "d", Delay: time.Hour})
	behind := insert(t, inserter, simplequeue.NewJob{Queue: "q", OrderKey: "d"})
	r := newRuns()
	entered := make(chan struct{}, 10)
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
		r.enter(job)
		defer r.leave(job)
		entered <- struct{}{}
		if job.ID == jobs[0] {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	})}})
	start(t, q)
	<-entered
	for _, id := range []uuid.UUID{jobs[1], jobs[0], delayed} { // behind, running, and let in but not due
		if id == delayed {
			eventually(t, "the delayed one is let in", func() bool { return get(t, q, delayed).Reason == "scheduled" })
		}
		if _, err := q.Cancel(t.Context(), id, "test"); err != nil {
			t.Fatal(err)
		}
	}
	awaitCompleted(t, q, "q", 3)
	if got := r.of("k"); !slices.Equal(got, []uuid.UUID{jobs[0], jobs[2], jobs[3]}) {
		t.Errorf("ran as %v of %v", got, jobs)
	}
	if s := state(t, q, behind); s != simplequeue.StateCompleted {
		t.Errorf("the one behind the cancelled is %s", s)
	}
	awaitNoGates(t, pool)
}

// A queue that is first in, first out runs one job at a time, whatever the keys.
func TestFIFOQueue(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var mu sync.Mutex
	inside, most := 0, 0
	var ran []uuid.UUID
	opts := handler("q", func(_ context.Context, job *simplequeue.Job) error {
		mu.Lock()
		inside++
		most = max(most, inside)
		ran = append(ran, job.ID)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		inside--
		mu.Unlock()
		if job.OrderKey == "last" {
			return simplequeue.Critical(nil)
		}
		return nil
	})
	opts.Queues = map[string]simplequeue.QueueOptions{"q": {FIFO: true, BlockDead: true}}
	q := newQueue(t, pool, opts)
	var want []uuid.UUID
	for i := range 30 {
		want = append(want, insert(t, q, simplequeue.NewJob{Queue: "q", Priority: 9 - i%10, OrderKey: []string{"", "a", "b"}[i%3]}))
	}
	behind := want[len(want)-1]
	if reason := get(t, q, behind).Reason; reason != `behind others of the queue "q"` {
		t.Errorf("reason %q", reason)
	}
	last := insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "last"})
	insert(t, q, simplequeue.NewJob{Queue: "q"})
	start(t, q)
	awaitState(t, q, last, simplequeue.StateCritical)
	keys, err := q.BlockedKeys(t.Context(), "")
	if err != nil || len(keys) != 1 || keys[0].Queue != "q" || keys[0].OrderKey != "" || keys[0].JobID != last {
		t.Fatalf("blocked: %+v, %v", keys, err)
	}
	if err := q.ReleaseKey(t.Context(), "q", ""); err != nil {
		t.Fatal(err)
	}
	awaitCompleted(t, q, "q", 31)
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(ran[:30], want) || most != 1 {
		t.Errorf("%d at once, ran as\n%v, inserted as\n%v", most, ran, want)
	}
	awaitNoGates(t, pool)
}

// committed inserts jobs of hot keys in transactions of 20 ms, in every way, and
// notes by key the order in which they committed: each transaction leaves a row
// whose place in the log is given while it holds a lock of the test's own.
func TestConcurrentOrderedInserts(t *testing.T) {
	t.Parallel()
	const inserters, each, keys = 50, 4, 10
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, inserters+5)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	q := newQueue(t, pool, simplequeue.Options{})
	// Two transactions that do not overlap say who was first.
	type span struct {
		begun, ended time.Time
		at           map[string][]uuid.UUID
	}
	var mu sync.Mutex
	var spans []span
	var wg sync.WaitGroup
	errs := make(chan error, inserters)
	for n := range inserters {
		wg.Go(func() {
			for i := range each {
				// Two keys each, in opposite orders.
				a, b := fmt.Sprint("k", (n+i)%keys), fmt.Sprint("k", (n*7+i*3+1)%keys)
				s := span{begun: time.Now(), at: map[string][]uuid.UUID{}}
				note := func(list []simplequeue.Inserted, jobs []simplequeue.NewJob) {
					for i, r := range list {
						s.at[jobs[i].OrderKey] = append(s.at[jobs[i].OrderKey], r.ID)
					}
				}
				jobs := func(key string) []simplequeue.NewJob {
					return []simplequeue.NewJob{{Queue: "q", OrderKey: key}, {Queue: "q", OrderKey: key}}
				}
				err := func() error {
					switch n % 4 {
					case 0, 1: // pgx, at its levels
						level := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead}[i%2]
						return pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
							for _, key := range []string{a, b} {
								list, err := q.InsertManyTx(t.Context(), tx, jobs(key))
								if err != nil {
									return err
								}
								note(list, jobs(key))
								time.Sleep(10 * time.Millisecond)
							}
							return nil
						})
					case 2:
						tx, err := db.BeginTx(t.Context(), nil)
						if err != nil {
							return err
						}
						defer func() { _ = tx.Rollback() }()
						for _, key := range []string{b, a} {
							list, err := q.InsertManySQLTx(t.Context(), tx, jobs(key))
							if err != nil {
								return err
							}
							note(list, jobs(key))
							time.Sleep(10 * time.Millisecond)
						}
						return tx.Commit()
					}
					both := append(jobs(b), jobs(a)...)
					list, err := q.InsertMany(t.Context(), both)
					note(list, both)
					return err
				}()
				if err != nil {
					errs <- fmt.Errorf("inserter %d: %w", n, err)
					return
				}
				s.ended = time.Now()
				mu.Lock()
				spans = append(spans, s)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}

	// Places: unique, in the order of the array, transactions in one piece, and
	// those of a transaction that ended before another began are lower.
	place := map[uuid.UUID]int64{}
	rows, err := pool.Query(t.Context(), "SELECT job_id, place FROM simplequeue.job_gated")
	if err != nil {
		t.Fatal(err)
	}
	var id uuid.UUID
	var p int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &p}, func() error { place[id] = p; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, s := range spans {
		for key, list := range s.at {
			if !slices.IsSortedFunc(list, func(a, b uuid.UUID) int { return int(place[a] - place[b]) }) {
				t.Errorf("%s: places of a transaction do not follow the array", key)
			}
			for _, other := range spans {
				if theirs := other.at[key]; len(theirs) > 0 && s.ended.Before(other.begun) && place[list[len(list)-1]] > place[theirs[0]] {
					t.Errorf("%s: a transaction that ended first has later places", key)
				}
			}
		}
	}

	r := newRuns()
	worker := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })}})
	start(t, worker)
	total := 0
	for _, s := range spans {
		for _, list := range s.at {
			total += len(list)
		}
	}
	awaitCompleted(t, worker, "q", int64(total))
	for key, ran := range r.order {
		if !slices.IsSortedFunc(ran, func(a, b uuid.UUID) int { return int(place[a] - place[b]) }) {
			t.Errorf("%s did not run by place", key)
		}
	}
	if r.most != 1 {
		t.Errorf("%d jobs of a key at once", r.most)
	}
}

// The order is that of the commits, not of the inserts: of two transactions at
// one key, whichever commits first comes first.
func TestOrderIsThatOfTheCommits(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := newRuns()
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{r.handler("q", func(*simplequeue.Job) error { return nil })}})
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		key := string(level)
		begin := func() (pgx.Tx, uuid.UUID) {
			tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
			if err != nil {
				t.Fatal(err)
			}
			in, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "q", OrderKey: key})
			if err != nil {
				t.Fatal(err)
			}
			return tx, in.ID
		}
		first, a := begin()
		second, b := begin()
		rolled, _ := begin()
		if err := second.Commit(t.Context()); err != nil {
			t.Fatalf("%s: %v", level, err)
		}
		if err := rolled.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := first.Commit(t.Context()); err != nil && level != pgx.Serializable {
			t.Fatalf("%s: %v", level, err)
		} else if err != nil {
			t.Logf("%s: %v", level, err)
			var left int
			if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_gated WHERE job_id = $1", a).Scan(&left); err != nil || left != 0 {
				t.Errorf("%d rows left, %v", left, err)
			}
			continue
		}
		defer func() {
			if got := r.of(key); !slices.Equal(got, []uuid.UUID{b, a}) {
				t.Errorf("%s: ran as %v, committed as %v, %v", level, got, b, a)
			}
		}()
	}
	start(t, q)
	eventually(t, "all have run", func() bool {
		c := counts(t, q, "q")
		return c[simplequeue.StateWaiting]+c[simplequeue.StatePending]+c[simplequeue.StateRunning] == 0
	})
}

func TestOrderKeyIsChecked(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	for _, key := range []string{strings.Repeat("x", 513), "a\x00b", "\xff"} {
		var invalid *simplequeue.InvalidJobError
		if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "q", OrderKey: key}); !errors.As(err, &invalid) || invalid.Field != "OrderKey" {
			t.Errorf("%q: %v", key, err)
		}
	}
	insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "tab\tand\nline"})
}
