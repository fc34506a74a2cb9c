package simplequeue_test

import (
	"context"
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

// Transactions of 20 ms insert jobs of hot keys at the same time, in every way.
// Places are unique; for each key those of a transaction stand together, in the
// order of its inserts, and before those of one that began after it had ended;
// the jobs run by place.
func TestConcurrentOrderedInserts(t *testing.T) {
	t.Parallel()
	const inserters, each, keys = 50, 4, 10
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, inserters+5)
	q := newQueue(t, pool, simplequeue.Options{})
	ways := orderedInserts(t, pool, q)
	// Two transactions that do not overlap say who was first.
	type span struct {
		begun, ended time.Time
		at           map[string][]uuid.UUID
	}
	var mu sync.Mutex
	var spans []span
	var wg sync.WaitGroup
	for n := range inserters {
		wg.Go(func() {
			for i := range each {
				// Two keys each, in opposite orders.
				two := []string{fmt.Sprint("k", (n+i)%keys), fmt.Sprint("k", (n*7+i*3+1)%keys)}
				if n%2 == 0 {
					slices.Reverse(two)
				}
				var lists [][]simplequeue.NewJob
				for _, key := range two {
					lists = append(lists, repeat(2, simplequeue.NewJob{Queue: "q", OrderKey: key}))
				}
				s := span{begun: time.Now(), at: map[string][]uuid.UUID{}}
				results, err := ways[n%len(ways)](lists)
				if err != nil {
					t.Errorf("inserter %d: %v", n, err)
					return
				}
				s.ended = time.Now()
				for i, job := range slices.Concat(lists...) {
					s.at[job.OrderKey] = append(s.at[job.OrderKey], results[i].ID)
				}
				mu.Lock()
				spans = append(spans, s)
				mu.Unlock()
			}
		})
	}
	wg.Wait()

	place := map[uuid.UUID]int64{}
	line := map[string][]uuid.UUID{} // by key, in the order of the places
	rows, err := pool.Query(t.Context(), "SELECT gate, job_id, place FROM simplequeue.job_gated ORDER BY place")
	if err != nil {
		t.Fatal(err)
	}
	var gate string
	var id uuid.UUID
	var last, p int64
	if _, err := pgx.ForEachRow(rows, []any{&gate, &id, &p}, func() error {
		if p == last {
			t.Errorf("two jobs have place %d", p)
		}
		last, place[id] = p, p
		key := strings.TrimPrefix(gate, "o\tq\t")
		line[key] = append(line[key], id)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range spans {
		for key, list := range s.at {
			at := slices.Index(line[key], list[0])
			if at < 0 || len(line[key]) < at+len(list) || !slices.Equal(line[key][at:at+len(list)], list) {
				t.Errorf("%s: the jobs of a transaction do not stand together, in their order", key)
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
	awaitCompleted(t, worker, "q", int64(len(place)))
	for key, ran := range r.order {
		if !slices.Equal(ran, line[key]) {
			t.Errorf("%s did not run by place", key)
		}
	}
	if len(place) != inserters*each*4 || r.most != 1 {
		t.Errorf("%d jobs, %d of a key at once, want %d, one at a time", len(place), r.most, inserters*each*4)
	}
}

// orderedInserts are the ways to insert lists in one transaction, most of them
// with a while after each list.
func orderedInserts(t *testing.T, pool *pgxpool.Pool, q *simplequeue.SimpleQueue) []func(lists [][]simplequeue.NewJob) ([]simplequeue.Inserted, error) {
	type newJobs = []simplequeue.NewJob
	type inserted = []simplequeue.Inserted
	db := openSQL(t, "pgx", pool)
	slowly := func(lists []newJobs, insert func(newJobs) (inserted, error)) (all inserted, err error) {
		for _, jobs := range lists {
			list, err := insert(jobs)
			if err != nil {
				return nil, err
			}
			all = append(all, list...)
			time.Sleep(10 * time.Millisecond)
		}
		return all, nil
	}
	byTx := func(level pgx.TxIsoLevel, insert func(pgx.Tx, newJobs) (inserted, error)) func([]newJobs) (inserted, error) {
		return func(lists []newJobs) (all inserted, err error) {
			err = pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
				all, err = slowly(lists, func(jobs newJobs) (inserted, error) { return insert(tx, jobs) })
				return err
			})
			return all, err
		}
	}
	insertMany := func(tx pgx.Tx, jobs newJobs) (inserted, error) { return q.InsertManyTx(t.Context(), tx, jobs) }
	return []func([]newJobs) (inserted, error){
		byTx(pgx.ReadCommitted, insertMany),
		byTx(pgx.RepeatableRead, insertMany),
		byTx(pgx.ReadCommitted, func(tx pgx.Tx, jobs newJobs) (list inserted, err error) {
			for _, job := range jobs {
				in, err := enqueue(t.Context(), tx, job)
				if err != nil {
					return nil, err
				}
				list = append(list, in)
			}
			return list, nil
		}),
		func(lists []newJobs) (inserted, error) {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				return nil, err
			}
			defer func() { _ = tx.Rollback() }()
			all, err := slowly(lists, func(jobs newJobs) (inserted, error) { return q.InsertManySQLTx(t.Context(), tx, jobs) })
			if err != nil {
				return nil, err
			}
			return all, tx.Commit()
		},
		func(lists []newJobs) (inserted, error) { return q.InsertMany(t.Context(), slices.Concat(lists...)) },
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
