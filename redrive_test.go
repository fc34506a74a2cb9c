package simplequeue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
)

// bury cancels jobs and moves them to the dead letter queue.
func bury(t *testing.T, pool *pgxpool.Pool, q *simplequeue.SimpleQueue, f simplequeue.Filter) {
	t.Helper()
	if _, err := q.CancelMatching(t.Context(), f, "test"); err != nil {
		t.Fatal(err)
	}
	j, err := janitor.New(pool, janitor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A redriven job is the same job with all that it had, and all attempts before
// it.
func TestARedrivenJobIsWholeAndRunsAfresh(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var mended atomic.Bool
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error {
		if mended.Load() {
			return nil
		}
		return simplequeue.RetryAfter(0, fmt.Errorf("broken %d", job.Attempt))
	}))
	start(t, q)
	jobs := map[string]simplequeue.NewJob{
		"small": {Queue: "a", Kind: "k", Payload: "p", Raw: []byte("r"), Priority: 3, UniqueKey: "u1", Metadata: map[string]string{"a": "b"}, MaxAttempts: 2},
		"big":   {Queue: "a", Payload: strings.Repeat("p", 3000), Fingerprint: "f", UniqueKey: "u2", UniqueGlobal: true, MaxAttempts: 2},
		"raw":   {Queue: "a", Raw: bytes.Repeat([]byte{0, 255}, 800), MaxAttempts: 2},
		"empty": {Queue: "a", MaxAttempts: 2},
	}
	ids, before := map[string]uuid.UUID{}, map[string]simplequeue.JobInfo{}
	for name, job := range jobs {
		ids[name] = insert(t, q, job)
	}
	for name, id := range ids {
		before[name] = awaitState(t, q, id, simplequeue.StateFailed)
	}
	mended.Store(true)
	r, err := q.Redrive(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{})
	if err != nil || len(r.IDs) != len(jobs) || r.Conflicts != 0 {
		t.Fatalf("Redrive: %+v, %v", r, err)
	}
	for name, id := range ids {
		after := awaitState(t, q, id, simplequeue.StateCompleted)
		if after.Attempt != 1 || after.Redrives != 1 || len(after.Errors) != 2 || after.Errors[1].Error != "broken 2" {
			t.Errorf("%s: attempt %d, redriven %d times, errors %v", name, after.Attempt, after.Redrives, after.Errors)
		}
		want := before[name]
		for _, same := range []struct{ got, want any }{
			{string(after.Payload), string(want.Payload)},
			{after.Raw, want.Raw},
			{after.Priority, want.Priority},
			{after.UniqueKey, want.UniqueKey},
			{after.Fingerprint, want.Fingerprint},
			{after.Metadata, want.Metadata},
			{after.MaxAttempts, 2},
			{after.CreatedAt.Equal(want.CreatedAt), true},
		} {
			if !cmp.Equal(same.want, same.got) {
				t.Errorf("%s: %s", name, cmp.Diff(same.want, same.got))
			}
		}
	}
	if n := queryOne[int](t, pool, `SELECT (SELECT count(*) FROM simplequeue.job_unique) + (SELECT count(*) FROM simplequeue.job_fingerprint)
		+ (SELECT count(*) FROM simplequeue.job_payload) + (SELECT count(*) FROM simplequeue.job_queue_dlq)`); n != 0 {
		t.Errorf("%d rows are left beside the completed jobs", n)
	}
}

// While a redriven job lives it holds its key, its fingerprint and its payload
// as any live job does.
func TestARedrivenJobHoldsWhatALiveJobHolds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "u", Fingerprint: "f", Payload: strings.Repeat("p", 5000)})
	bury(t, pool, q, simplequeue.Filter{Queue: "a"})
	if r, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{MaxAttempts: 7}); err != nil || len(r.IDs) != 1 {
		t.Fatalf("Redrive: %+v, %v", r, err)
	}
	if r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a", UniqueKey: "u"}); err != nil || !r.Duplicate || r.ID != id {
		t.Errorf("Insert: %+v, %v, want a duplicate of the redriven job", r, err)
	}
	live := simplequeue.Filter{Fingerprint: "f", States: []simplequeue.State{simplequeue.StatePending}}
	if list, err := q.List(t.Context(), live); err != nil || len(list) != 1 || len(list[0].Payload) != 5002 || list[0].MaxAttempts != 7 {
		t.Errorf("by fingerprint: %+v, %v", list, err)
	}
	if n := queryOne[int](t, pool, "SELECT octet_length(payload::text) FROM simplequeue.job_payload"); n != 5002 {
		t.Errorf("job_payload holds %d bytes", n)
	}
}

// A job whose key a live job holds stays where it is, and says who holds it; of
// several dead jobs with one key the oldest goes.
func TestRedriveRespectsUniqueKeys(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	var dead []uuid.UUID
	for range 3 {
		dead = append(dead, insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"}))
		bury(t, pool, q, simplequeue.Filter{Queue: "a"})
	}
	taken := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "l"})
	bury(t, pool, q, simplequeue.Filter{IDs: []uuid.UUID{taken}})
	holder := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "l"})
	r, err := q.Redrive(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := simplequeue.Redriven{
		IDs: dead[:1], Conflicts: 3,
		Conflicting: []simplequeue.KeyConflict{{ID: dead[1], Holder: dead[0]}, {ID: dead[2], Holder: dead[0]}, {ID: taken, Holder: holder}},
	}
	if !cmp.Equal(want, r) {
		t.Errorf("Redrive: %s", cmp.Diff(want, r))
	}
	if got := state(t, q, taken); got != simplequeue.StateCancelled {
		t.Errorf("the job in conflict is %s", got)
	}
	noted := queryOne[string](t, pool, "SELECT props -> 'redrive_conflict' ->> 'holder' FROM simplequeue.job_queue_dlq WHERE id = '"+taken.String()+"'")
	if noted != holder.String() {
		t.Errorf("noted is %s, want %v", noted, holder)
	}
	bury(t, pool, q, simplequeue.Filter{IDs: []uuid.UUID{holder}})
	r, err = q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{taken}}, simplequeue.RedriveOptions{})
	if err != nil || len(r.IDs) != 1 {
		t.Errorf("Redrive when the key is free: %+v, %v", r, err)
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue WHERE props ? 'redrive_conflict'"); n != 0 {
		t.Error("the conflict is still noted on the live job")
	}
}

// Redrives by several at once, while inserts and cancels take the same keys:
// every job goes once, nobody deadlocks, and no key has two holders.
func TestRedrivesAtOnceTakeEachJobOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 12)
	q := newQueue(t, pool, simplequeue.Options{})
	jobs := make([]simplequeue.NewJob, 1200)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Kind: "dead"}
		if i%2 == 0 {
			jobs[i].UniqueKey = fmt.Sprint(i % 100)
			jobs[i].UniqueGlobal = i%4 == 0
		}
	}
	for i := 0; i < len(jobs); i += 50 { // a key is held by one at a time
		if _, err := q.InsertMany(t.Context(), jobs[i:i+50]); err != nil {
			t.Fatal(err)
		}
		bury(t, pool, q, simplequeue.Filter{Queue: "a"})
	}
	dead := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue_dlq")
	var mu sync.Mutex
	times := map[uuid.UUID]int{}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			r, err := q.Redrive(context.Background(), simplequeue.Filter{Kind: "dead"}, simplequeue.RedriveOptions{})
			if err != nil {
				t.Errorf("Redrive: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range r.IDs {
				times[id]++
			}
		})
	}
	all.Go(func() {
		for i := range 50 {
			keyed := simplequeue.NewJob{Queue: "a", Kind: "other", UniqueKey: fmt.Sprint(98 - 2*i)}
			if _, err := q.InsertMany(context.Background(), []simplequeue.NewJob{keyed, {Queue: "a", Kind: "other", UniqueKey: fmt.Sprint(2 * i)}}); err != nil && !errors.Is(err, simplequeue.ErrUniqueContention) {
				t.Errorf("InsertMany: %v", err)
			}
		}
	})
	all.Wait()
	for id, n := range times {
		if n != 1 {
			t.Errorf("job %v went %d times", id, n)
		}
	}
	left := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue_dlq")
	if len(times)+left != dead || len(times) < 600 {
		t.Errorf("%d jobs went and %d are left, of %d", len(times), left, dead)
	}
	if n := queryOne[int](t, pool, `SELECT count(*) FROM (SELECT unique_scope, unique_key FROM simplequeue.job_queue
		WHERE unique_key IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1) AS twice`); n != 0 {
		t.Errorf("%d keys have two holders", n)
	}
	if n := queryOne[int](t, pool, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n != 0 {
		t.Errorf("the server counted %d deadlocks", n)
	}
}

// A redrive at a rate takes its time, stops with its context, and does not take
// again what has failed again.
func TestRedriveAtARate(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("a", func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(nil) }))
	if _, err := q.InsertMany(t.Context(), make30("a")); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	dead := func() int { return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue_dlq") }
	eventually(t, "all are dead", func() bool { return dead() == 30 })
	began := time.Now()
	r, err := q.Redrive(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{Rate: 50})
	if took := time.Since(began); err != nil || len(r.IDs) != 30 || took < 400*time.Millisecond {
		t.Errorf("Redrive: %d jobs in %v, %v, want 30 in half a second or more", len(r.IDs), took, err)
	}
	eventually(t, "all are dead again", func() bool { return dead() == 30 })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r, err = q.Redrive(ctx, simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{Rate: 10})
	if !errors.Is(err, context.DeadlineExceeded) || len(r.IDs) == 30 {
		t.Errorf("Redrive: %d jobs, %v, want some and the context's error", len(r.IDs), err)
	}
}

func make30(queue string) []simplequeue.NewJob {
	jobs := make([]simplequeue.NewJob, 30)
	for i := range jobs {
		jobs[i].Queue = queue
	}
	return jobs
}

// A job that crashed its worker comes back as a suspect.
func TestARedrivenBadJobIsStillASuspect(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	bury(t, pool, q, simplequeue.Filter{Queue: "a"})
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_queue_dlq SET crash_count = 3, state = 'bad_job'"); err != nil {
		t.Fatal(err)
	}
	f := simplequeue.Filter{States: []simplequeue.State{simplequeue.StateBadJob}}
	if r, err := q.Redrive(t.Context(), f, simplequeue.RedriveOptions{}); err != nil || !cmp.Equal(r.IDs, []uuid.UUID{id}) {
		t.Fatalf("Redrive: %+v, %v", r, err)
	}
	if got := queryOne[string](t, pool, "SELECT lane || ' ' || crash_count FROM simplequeue.job_queue"); got != "-2 1" {
		t.Errorf("lane and crash count are %s, want -2 1", got)
	}
}

// A job that ended outside a worker can go back before the janitor has moved it.
func TestRedriveFindsJobsOnTheirWayToTheDeadLetters(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: strings.Repeat("p", 2000), UniqueKey: "k", Fingerprint: "f"})
	if _, err := q.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	r, err := q.Redrive(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{})
	if err != nil || len(r.IDs) != 1 {
		t.Fatalf("Redrive: %+v, %v", r, err)
	}
	if info := get(t, q, id); info.State != simplequeue.StatePending || len(info.Payload) != 2002 {
		t.Errorf("state %s, payload of %d bytes", info.State, len(info.Payload))
	}
}

// A step moves a payload of any size apart, where the redrive of a job that the
// janitor has not moved yet has to leave it; the step is made again.
func TestRedriveOfAJobWithStepsBeforeItIsMoved(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var made atomic.Int32
	opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		if _, err := simplequeue.Step(ctx, job, "step", func(context.Context) (int32, error) { return made.Add(1), nil }); err != nil {
			return err
		}
		if made.Load() == 1 {
			return simplequeue.RetryAfter(time.Hour, errors.New("later"))
		}
		return job.SetResult(string(job.Payload))
	})
	q := newQueue(t, pool, opts)
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: "small"})
	stop := start(t, q)
	awaitState(t, q, id, simplequeue.StateWaiting)
	if err := stop(); err != nil { // the janitor too
		t.Fatal(err)
	}
	if _, err := q.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_finished"); n != 1 {
		t.Fatalf("%d jobs to be moved, want 1", n)
	}
	if r, err := q.Redrive(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{}); err != nil || len(r.IDs) != 1 {
		t.Fatalf("Redrive: %+v, %v", r, err)
	}
	start(t, newQueue(t, pool, opts))
	if info := awaitState(t, q, id, simplequeue.StateCompleted); string(info.Payload) != `"small"` || string(info.Result) != `"\"small\""` {
		t.Errorf("payload %s, result %s", info.Payload, info.Result)
	}
	if made.Load() != 2 {
		t.Errorf("the step was made %d times, want 2", made.Load())
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_payload"); n != 0 {
		t.Errorf("%d payloads are left", n)
	}
}

// A job that the janitor moves to the dead letter queue at this moment is
// redriven from there.
func TestRedriveMeetsTheJanitor(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	if _, err := q.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END$$;
		CREATE TRIGGER slow BEFORE INSERT ON simplequeue.job_queue_dlq FOR EACH ROW EXECUTE FUNCTION slow()`)
	gate, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Rollback(context.Background()) }()
	if _, err := gate.Exec(t.Context(), "SELECT pg_advisory_xact_lock(7)"); err != nil {
		t.Fatal(err)
	}
	j, err := janitor.New(pool, janitor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	moved := make(chan error, 1)
	go func() { _, err := j.Once(t.Context()); moved <- err }()
	waiting := func(n int) func() bool {
		return func() bool {
			return queryOne[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") >= n
		}
	}
	eventually(t, "the janitor waits", waiting(1))
	type answer struct {
		r   simplequeue.Redriven
		err error
	}
	redriven := make(chan answer, 1)
	go func() {
		r, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{})
		redriven <- answer{r, err}
	}()
	eventually(t, "the redrive waits or is over", func() bool { return len(redriven) == 1 || waiting(2)() })
	if err := gate.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-redriven; a.err != nil || len(a.r.IDs) != 1 {
		t.Errorf("Redrive: %+v, %v", a.r, a.err)
	}
	if err := <-moved; err != nil {
		t.Error(err)
	}
	if s := state(t, q, id); s != simplequeue.StatePending {
		t.Errorf("state %s, want %s", s, simplequeue.StatePending)
	}
}

// A replay runs a copy; the archive goes on to say what it said.
func TestReplayCopiesCompletedJobs(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("a", func(context.Context, *simplequeue.Job) error { return nil }))
	start(t, q)
	job := simplequeue.NewJob{
		Queue: "a", Kind: "k", Payload: strings.Repeat("p", 2000), Priority: 2, UniqueKey: "u", Fingerprint: "f",
		Metadata: map[string]string{"a": "b"}, Timeout: time.Minute, MaxAttempts: 4,
	}
	id := insert(t, q, job)
	before := awaitState(t, q, id, simplequeue.StateCompleted)
	r, err := q.Replay(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{})
	if err != nil || len(r.IDs) != 1 || r.IDs[0] == id {
		t.Fatalf("Replay: %+v, %v", r, err)
	}
	copied := awaitState(t, q, r.IDs[0], simplequeue.StateCompleted)
	if copied.ReplayOf != id || copied.Attempt != 1 {
		t.Errorf("the copy is of %v, attempt %d", copied.ReplayOf, copied.Attempt)
	}
	type rest struct {
		Kind, Payload, Key, Fingerprint string
		Priority, MaxAttempts           int
		Metadata                        map[string]string
		Timeout                         time.Duration
	}
	of := func(i simplequeue.JobInfo) rest {
		return rest{i.Kind, string(i.Payload), i.UniqueKey, i.Fingerprint, i.Priority, i.MaxAttempts, i.Metadata, i.Timeout}
	}
	if diff := cmp.Diff(of(before), of(copied)); diff != "" {
		t.Errorf("the copy differs: %s", diff)
	}
	if diff := cmp.Diff(before, get(t, q, id), cmpopts.IgnoreUnexported(simplequeue.Job{})); diff != "" {
		t.Errorf("the archived job has changed: %s", diff)
	}
	holder := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "u", Delay: time.Hour})
	r, err = q.Replay(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{})
	want := simplequeue.Redriven{Conflicts: 1, Conflicting: []simplequeue.KeyConflict{{ID: id, Holder: holder}}}
	if err != nil || !cmp.Equal(want, r) {
		t.Errorf("Replay of a job whose key is held: %+v, %v", r, err)
	}
}

// A replay inserts what the middleware has made of the job when it was inserted,
// and does not pass through it again.
func TestReplayDoesNotPassInsertMiddleware(t *testing.T) {
	t.Parallel()
	calls := 0
	opts := handler("a", nothing)
	opts.InsertMiddleware = []simplequeue.InsertMiddleware{insertBy(func(job *simplequeue.NewJob) {
		calls++
		job.Payload = "sealed " + job.Payload.(string)
	})}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: "letter"})
	awaitState(t, q, id, simplequeue.StateCompleted)
	r, err := q.Replay(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{})
	if err != nil || len(r.IDs) != 1 {
		t.Fatalf("Replay: %+v, %v", r, err)
	}
	if got := get(t, q, r.IDs[0]); string(got.Payload) != `"sealed letter"` || calls != 1 {
		t.Errorf("the copy has %s, and middleware was called %d times, want once", got.Payload, calls)
	}
}

// A queue's limit is for inserts: what an operator redrives or changes goes in
// beside it, also into a priority that the queue has not had.
func TestRedriveIntoABoundedQueue(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("full", func(_ context.Context, job *simplequeue.Job) error {
		if job.Kind == "dead" {
			return simplequeue.Critical(errors.New("no"))
		}
		return nil
	}))
	stop := start(t, q)
	dead := insert(t, q, simplequeue.NewJob{Queue: "full", Kind: "dead"})
	awaitState(t, q, dead, simplequeue.StateCritical)
	done := insert(t, q, simplequeue.NewJob{Queue: "full", Priority: 3})
	awaitState(t, q, done, simplequeue.StateCompleted)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := q.SetQueueLimit(t.Context(), "full", 1); err != nil {
		t.Fatal(err)
	}
	waits := insert(t, q, simplequeue.NewJob{Queue: "full", Delay: time.Hour})
	if r, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{dead}}, simplequeue.RedriveOptions{}); err != nil || len(r.IDs) != 1 {
		t.Errorf("Redrive: %+v, %v", r, err)
	}
	for name, q := range map[string]*simplequeue.SimpleQueue{"one that knows": q, "one that does not": newQueue(t, pool, simplequeue.Options{})} {
		r, err := q.Replay(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{done}}, simplequeue.RedriveOptions{})
		if err != nil || len(r.IDs) != 1 {
			t.Errorf("Replay by %s: %+v, %v", name, r, err)
		}
	}
	priority := 7
	if err := q.Change(t.Context(), waits, simplequeue.Change{Priority: &priority}); err != nil {
		t.Errorf("Change: %v", err)
	}
	if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "full", Priority: 7}); !errors.Is(err, simplequeue.ErrQueueFull) {
		t.Errorf("Insert: %v, want %v", err, simplequeue.ErrQueueFull)
	}
	if _, err := q.Cancel(t.Context(), waits, ""); err != nil {
		t.Fatal(err)
	}
	insert(t, q, simplequeue.NewJob{Queue: "full", Priority: 7})
}

// Purge deletes what has ended and matches, and nothing else.
func TestPurge(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("run", func(context.Context, *simplequeue.Job) error { return nil }))
	start(t, q)
	done := insert(t, q, simplequeue.NewJob{Queue: "run"})
	awaitState(t, q, done, simplequeue.StateCompleted)
	big := strings.Repeat("p", 2000)
	live := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "live", Payload: big})
	dead := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "dead", Payload: big})
	other := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "other"})
	for _, id := range []uuid.UUID{dead, other} {
		if _, err := q.Cancel(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := q.Purge(t.Context(), simplequeue.Filter{Queue: "run"}); err != nil || n != 1 || state(t, q, done) != "" {
		t.Errorf("Purge of the archive: %d, %v", n, err)
	}
	for range 2 {
		n, err := q.Purge(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{live, dead}})
		if err != nil || n > 1 {
			t.Errorf("Purge: %d, %v", n, err)
		}
	}
	eventually(t, "the janitor has moved it", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_finished") == 0
	})
	for id, want := range map[uuid.UUID]simplequeue.State{live: simplequeue.StatePending, dead: "", other: simplequeue.StateCancelled} {
		if got := state(t, q, id); got != want {
			t.Errorf("job %v is %q, want %q", id, got, want)
		}
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_payload"); n != 1 {
		t.Errorf("%d payloads, want that of the live job", n)
	}
	for _, f := range []simplequeue.Filter{{}, {Queue: "a", States: []simplequeue.State{simplequeue.StatePending}}} {
		var invalid *simplequeue.InvalidFilterError
		if _, err := q.Purge(t.Context(), f); !errors.As(err, &invalid) {
			t.Errorf("Purge(%+v): %v, want a refusal", f, err)
		}
	}
	if n, err := q.Purge(t.Context(), simplequeue.Filter{States: []simplequeue.State{simplequeue.StateCancelled}}); err != nil || n != 1 {
		t.Errorf("Purge by state: %d, %v", n, err)
	}
}

// A dead job that is redriven and completes between the look for it and its purge
// is no dead one, and stays.
func TestPurgeOfDeadJobsLeavesCompletedOnes(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	makeRoom(t, pool) // what completes goes to the archive at once
	var ids []uuid.UUID
	for range 2 {
		ids = append(ids, insert(t, q, simplequeue.NewJob{Queue: "a"}))
		if _, err := q.Cancel(t.Context(), ids[len(ids)-1], ""); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := pool.Begin(t.Context())
	if err == nil { // its row is the first that the purge locks
		_, err = tx.Exec(t.Context(), "SELECT FROM simplequeue.job_finished WHERE id = $1 FOR UPDATE", ids[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	done := make(chan int, 1)
	go func() {
		n, err := q.Purge(t.Context(), simplequeue.Filter{Queue: "a", States: []simplequeue.State{simplequeue.StateCancelled}})
		if err != nil {
			t.Error(err)
		}
		done <- n
	}()
	eventually(t, "the purge waits", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	if _, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: ids[1:]}, simplequeue.RedriveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := claimOne(t, q, "a").Settle(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := <-done; n != 1 || state(t, q, ids[0]) != "" || state(t, q, ids[1]) != simplequeue.StateCompleted {
		t.Errorf("%d purged, the jobs are %q and %q, want the first one gone", n, state(t, q, ids[0]), state(t, q, ids[1]))
	}
}

// Redrive and Replay refuse what they cannot do.
func TestRedriveRefusesWhatIsNotThere(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	none := simplequeue.RedriveOptions{}
	for what, err := range map[string]error{
		"all":       second(q.Redrive(t.Context(), simplequeue.Filter{}, none)),
		"completed": second(q.Redrive(t.Context(), simplequeue.Filter{States: []simplequeue.State{simplequeue.StateCompleted}}, none)),
		"live":      second(q.Redrive(t.Context(), simplequeue.Filter{States: []simplequeue.State{simplequeue.StateRunning}}, none)),
		"rate":      second(q.Redrive(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.RedriveOptions{Rate: -1})),
		"replay":    second(q.Replay(t.Context(), simplequeue.Filter{}, none)),
		"dead":      second(q.Replay(t.Context(), simplequeue.Filter{States: []simplequeue.State{simplequeue.StateFailed}}, none)),
	} {
		if err == nil {
			t.Errorf("%s was not refused", what)
		}
	}
	if r, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{uuid.New()}}, none); err != nil || len(r.IDs) != 0 {
		t.Errorf("Redrive of an unknown id: %+v, %v", r, err)
	}
}

// What acts on all jobs that match does not take a limit for a bound of how many.
func TestActionsRefuseALimit(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	f := simplequeue.Filter{Queue: "a", Limit: 1}
	priority := 1
	for what, err := range map[string]error{
		"redrive": second(q.Redrive(t.Context(), f, simplequeue.RedriveOptions{})),
		"replay":  second(q.Replay(t.Context(), f, simplequeue.RedriveOptions{})),
		"purge":   second(q.Purge(t.Context(), f)),
		"change":  second(q.ChangeMatching(t.Context(), f, simplequeue.Change{Priority: &priority})),
		"cancel":  second(q.CancelMatching(t.Context(), f, "")),
	} {
		var invalid *simplequeue.InvalidFilterError
		if !errors.As(err, &invalid) || invalid.Field != "Limit" {
			t.Errorf("%s with a limit: %v, want a refusal", what, err)
		}
	}
	if n := counts(t, q, "a")[simplequeue.StatePending]; n != 1 {
		t.Errorf("%d jobs are pending, want the one that nothing was done to", n)
	}
}

func second[T any](_ T, err error) error { return err }
