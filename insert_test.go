package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// queryOne returns the one value that a query gives.
func queryOne[T any](t testing.TB, pool *pgxpool.Pool, query string, args ...any) T {
	t.Helper()
	var v T
	if err := pool.QueryRow(context.Background(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// execute runs statements that must succeed.
func execute(t testing.TB, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := pool.Exec(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// allFields is a job with every field set but ID, RunAt and Delay.
func allFields() simplequeue.NewJob {
	return simplequeue.NewJob{
		Queue: "orders", Kind: "ship", Payload: map[string]any{"n": 9007199254740993, "s": "\\u0000 \"\t" + "☃"}, Raw: []byte{0, 1, 0xff, '\\', '"'},
		Priority: 7, MaxAttempts: 9, UniqueKey: `k"{},\'`, UniqueGlobal: true, Fingerprint: "f\\\"", Timeout: time.Minute,
		Metadata: map[string]string{"a": "b\n\"\\", "": "ü"}, TraceContext: map[string]string{"traceparent": "00-1"},
		Retention: simplequeue.Retention{Archive: 36 * time.Hour, DeadLetter: simplequeue.KeepForever},
	}
}

// ignoreIdentity leaves out what differs between two inserts of the same job.
var ignoreIdentity = cmp.Options{
	cmpopts.IgnoreFields(simplequeue.JobInfo{}, "ID", "CreatedAt"),
	cmpopts.IgnoreUnexported(simplequeue.Job{}),
}

// A job comes out as it went in: for an inspector, for its handler and in the
// archive.
func TestEveryFieldOfAJobIsKept(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	seen := make(chan simplequeue.Job, 1)
	q := newQueue(t, pool, handler("orders", func(_ context.Context, job *simplequeue.Job) error { seen <- *job; return nil }))
	job := allFields()
	id := insert(t, q, job)
	if id.Version() != 7 {
		t.Errorf("id %v has version %d, want 7", id, id.Version())
	}
	before := get(t, q, id)
	want := simplequeue.JobInfo{State: simplequeue.StatePending, Job: simplequeue.Job{
		Queue: job.Queue, Kind: job.Kind, Payload: json.RawMessage(`{"n": 9007199254740993, "s": "\\u0000 \"\t☃"}`), Raw: job.Raw,
		Priority: 7, MaxAttempts: 9, UniqueKey: job.UniqueKey, Fingerprint: job.Fingerprint, Timeout: time.Minute,
		Metadata: job.Metadata, TraceContext: job.TraceContext, Retention: job.Retention,
	}}
	if d := cmp.Diff(want, before, ignoreIdentity); d != "" {
		t.Errorf("pending job (-want +got):\n%s", d)
	}
	if age := queryOne[float64](t, pool, "SELECT extract(epoch FROM now() - $1::timestamptz)::float8", before.CreatedAt); age < 0 || age > 60 {
		t.Errorf("created %v s ago by the database's clock", age)
	}
	start(t, q)
	want.Attempt = 1
	if d := cmp.Diff(want.Job, <-seen, cmpopts.IgnoreFields(simplequeue.Job{}, "ID", "CreatedAt"), cmpopts.IgnoreUnexported(simplequeue.Job{})); d != "" {
		t.Errorf("job of the handler (-want +got):\n%s", d)
	}
	done := awaitState(t, q, id, simplequeue.StateCompleted)
	if d := cmp.Diff(want.Job, done.Job, cmpopts.IgnoreFields(simplequeue.Job{}, "ID", "CreatedAt"), cmpopts.IgnoreUnexported(simplequeue.Job{})); d != "" {
		t.Errorf("archived job (-want +got):\n%s", d)
	}
	if !done.CreatedAt.Equal(before.CreatedAt) || done.StartedAt.Before(done.CreatedAt) || done.FinishedAt.Before(done.StartedAt) || done.WorkerID == uuid.Nil {
		t.Errorf("times or worker of the archived job are off: %+v", done)
	}
}

// The defaults of a job that says nothing but its queue.
func TestDefaultsOfAJob(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{Queues: map[string]simplequeue.QueueOptions{"own": {MaxAttempts: 11}}})
	for queue, attempts := range map[string]int{"plain": 3, "own": 11} {
		want := simplequeue.JobInfo{State: simplequeue.StatePending, Job: simplequeue.Job{Queue: queue, MaxAttempts: attempts}}
		if d := cmp.Diff(want, get(t, q, insert(t, q, simplequeue.NewJob{Queue: queue})), ignoreIdentity); d != "" {
			t.Errorf("%s (-want +got):\n%s", queue, d)
		}
	}
}

// Nothing is inserted by an empty list, on any path, and an empty or nil value
// of any other slice or map is no value.
func TestEmptyAndNilSlicesAreNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	ctx := t.Context()
	for _, jobs := range [][]simplequeue.NewJob{nil, {}} {
		if r, err := q.InsertMany(ctx, jobs); err != nil || len(r) != 0 {
			t.Errorf("InsertMany(%#v) = %v, %v", jobs, r, err)
		}
		// Neither transaction nor connection is needed.
		if r, err := q.InsertManyTx(ctx, nil, jobs); err != nil || len(r) != 0 {
			t.Errorf("InsertManyTx(%#v) = %v, %v", jobs, r, err)
		}
		if r, err := q.InsertManySQLTx(ctx, nil, jobs); err != nil || len(r) != 0 {
			t.Errorf("InsertManySQLTx(%#v) = %v, %v", jobs, r, err)
		}
	}
	id := insert(t, q, simplequeue.NewJob{
		Queue: "a", Raw: []byte{}, Payload: json.RawMessage(nil), Metadata: map[string]string{}, TraceContext: map[string]string{},
	})
	if info := get(t, q, id); info.Payload != nil || info.Metadata != nil || len(info.Raw) != 0 {
		t.Errorf("empty values came back as %+v", info)
	}
	if list, err := q.List(ctx, simplequeue.Filter{IDs: []uuid.UUID{}}); err != nil || len(list) != 0 {
		t.Errorf("List of no ids = %v, %v", list, err)
	}
	if list, err := q.List(ctx, simplequeue.Filter{States: []simplequeue.State{}}); err != nil || len(list) != 1 {
		t.Errorf("List of any state = %d jobs, %v, want 1", len(list), err)
	}
	if n, err := q.CancelMatching(ctx, simplequeue.Filter{IDs: []uuid.UUID{}}, ""); err != nil || n != 0 {
		t.Errorf("CancelMatching of no ids = %d, %v", n, err)
	}
	if got := state(t, q, id); got != simplequeue.StatePending {
		t.Errorf("job is %s, want pending", got)
	}
}

// One call, one transaction, no limit on the number of parameters; the results
// are in the order of the jobs, and so are the jobs in their lane.
func TestHundredThousandJobsInOneCall(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	jobs := make([]simplequeue.NewJob, 100_000)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "bulk", Payload: i}
	}
	results, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != len(jobs) {
		t.Fatalf("%d results of %d jobs", len(results), len(jobs))
	}
	for _, at := range []int{0, 4999, 5000, 99_999} {
		if got := queryOne[int](t, pool, "SELECT payload::int FROM simplequeue.job_queue WHERE id = $1", results[at].ID); got != at {
			t.Errorf("job of result %d has payload %d", at, got)
		}
	}
	if n := queryOne[int](t, pool, `SELECT count(*) FROM (
		SELECT payload::int AS n, row_number() OVER (ORDER BY seq) - 1 AS place FROM simplequeue.job_queue) AS j WHERE n = place`); n != len(jobs) {
		t.Errorf("%d of %d jobs are at their place in the lane", n, len(jobs))
	}
	if n := queryOne[int](t, pool, "SELECT count(DISTINCT xmin::text) FROM simplequeue.job_queue"); n != 1 {
		t.Errorf("inserted by %d transactions, want 1", n)
	}
}

// Keyed jobs, too, go in by the ten thousand, and a key taken in a late chunk
// is looked up like any other.
func TestManyKeyedJobsInOneCall(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	const n = 12_000
	jobs := make([]simplequeue.NewJob, n)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "bulk", UniqueKey: fmt.Sprint("k", i%(n-1)), Delay: time.Duration(i%2) * time.Hour}
	}
	r, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	if !r[n-1].Duplicate || r[n-1].ID != r[0].ID {
		t.Errorf("last job: %+v, want duplicate of %v", r[n-1], r[0].ID)
	}
	want := map[simplequeue.State]int64{simplequeue.StatePending: n / 2, simplequeue.StateWaiting: n/2 - 1}
	if d := cmp.Diff(want, counts(t, q, "bulk")); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
}

// A job that cannot be stored fails the call before anything is stored.
func TestOneInvalidJobInsertsNone(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	_, err := q.InsertMany(t.Context(), []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", Delay: time.Hour}, {Queue: "a", Payload: make(chan int)}})
	var invalid *simplequeue.InvalidJobError
	if !errors.As(err, &invalid) || invalid.Index != 2 || invalid.Field != "Payload" {
		t.Errorf("error %v, want an InvalidJobError of job 2's payload", err)
	}
	var unsupported *json.UnsupportedTypeError
	if !errors.As(err, &unsupported) {
		t.Errorf("error %v does not carry the encoder's", err)
	}
	if c := counts(t, q, "a"); len(c) != 0 {
		t.Errorf("jobs were inserted: %v", c)
	}
}

// The caller holds the only connection: an insert returns by its deadline and
// says that there is no connection, and that nothing was inserted; the
// transaction that holds the connection can insert.
func TestInsertWithAnExhaustedPoolReturnsByItsDeadline(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 1)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, job := range []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", UniqueKey: "k"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		began := time.Now()
		_, err = q.Insert(ctx, job)
		cancel()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Insert took %v", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection") {
			t.Errorf("error %v, want one that tells of the deadline and the connection", err)
		}
		if errors.Is(err, simplequeue.ErrInsertUnknown) {
			t.Errorf("error %v leaves open what is certain: nothing was sent", err)
		}
	}
	r, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a"})
	if err != nil {
		t.Fatalf("InsertTx: %v", err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := state(t, q, r.ID); got != simplequeue.StatePending {
		t.Errorf("job is %q, want pending", got)
	}
}

// A wake-up is bounded: any number of queues with names of any allowed length.
func TestLongQueueNamesDoNotBreakTheWakeUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var ran atomic.Int64
	opts := handler("*", func(context.Context, *simplequeue.Job) error { ran.Add(1); return nil })
	opts.PollInterval = time.Minute
	q := newQueue(t, pool, opts)
	start(t, q)
	jobs := make([]simplequeue.NewJob, 200)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: fmt.Sprintf("%0128d", i), Payload: strings.Repeat("x", 20_000)}
	}
	inserter := newQueue(t, pool, simplequeue.Options{})
	if _, err := inserter.InsertMany(t.Context(), jobs[:100]); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := inserter.InsertManyTx(t.Context(), tx, jobs[100:]); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all jobs ran", func() bool { return ran.Load() == int64(len(jobs)) })
}

// Sequences may have counted far: nothing holds a position or a claim in less
// than 64 bits, or in a floating point number.
func TestPositionsAndClaimsBeyond53Bits(t *testing.T) {
	t.Parallel()
	for _, from := range []int64{1<<31 - 10, 1<<53 + 1} {
		t.Run(fmt.Sprint(from), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			execute(t, pool,
				fmt.Sprintf("ALTER TABLE simplequeue.job_queue ALTER seq RESTART %d", from),
				fmt.Sprintf("ALTER TABLE simplequeue.job_running ALTER claim_id RESTART %d", from),
				fmt.Sprintf("ALTER TABLE simplequeue.job_lane ALTER id RESTART %d", from))
			var tries atomic.Int64
			release := make(chan struct{})
			opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
				switch {
				case job.Kind == "cancel":
					<-ctx.Done()
					return ctx.Err()
				case tries.Add(1) <= 20:
					return simplequeue.RetryAfter(0, errors.New("again"))
				}
				<-release
				return nil
			})
			opts.HeartbeatInterval = time.Second
			q := newQueue(t, pool, opts)
			start(t, q)
			jobs := make([]simplequeue.NewJob, 20)
			for i := range jobs {
				jobs[i].Queue = "a"
			}
			if _, err := q.InsertMany(t.Context(), jobs); err != nil {
				t.Fatal(err)
			}
			asked := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "cancel"})
			awaitState(t, q, asked, simplequeue.StateRunning)
			if _, err := q.Cancel(t.Context(), asked, ""); err != nil {
				t.Fatal(err)
			}
			awaitState(t, q, asked, simplequeue.StateCancelled)
			eventually(t, "leases were beaten", func() bool {
				return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_lease") > 0
			})
			close(release)
			eventually(t, "all completed", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == 20 })
		})
	}
}
