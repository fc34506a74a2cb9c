package spool_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/spool"
)

// While the database is there a spool changes nothing: neither the statements,
// by which no id of a plain job is remembered, nor the file.
func TestInsertsGoToTheDatabaseWhileItIsThere(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	before, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	b.put(job("a", 1), false)
	if r, err := b.queue.InsertMany(t.Context(), jobs("a", 2, 400)); err != nil || r[0].Spooled {
		t.Fatalf("InsertMany: %+v, %v", r[0], err)
	}
	after, err := os.ReadFile(b.path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed (%v)", err)
	}
	var remembered int
	if err := b.direct.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_client_id").Scan(&remembered); err != nil || remembered != 0 {
		t.Errorf("%d ids are remembered, %v, want none", remembered, err)
	}
	if n := len(b.numbers("a")); n != 400 {
		t.Errorf("%d jobs, want 400", n)
	}
	if r, err := b.queue.InsertMany(t.Context(), nil); r != nil || err != nil {
		t.Errorf("an empty list: %v, %v", r, err)
	}
}

// What comes during an outage is replayed in order, lists as a whole, and what
// comes after it does not overtake.
func TestReplayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.put(job("a", 1), false)
	b.proxy.Cut()
	ids := []uuid.UUID{b.put(job("a", 2), true).ID}
	results, err := b.queue.InsertMany(t.Context(), jobs("a", 3, 5))
	if err != nil || len(results) != 3 || !results[2].Spooled {
		t.Fatalf("InsertMany: %+v, %v", results, err)
	}
	for _, r := range results {
		ids = append(ids, r.ID)
	}
	b.proxy.Heal()
	b.put(job("a", 6), true) // behind the others, though the database is there
	waiting, err := b.spool.Waiting(10)
	if err != nil || !slices.Equal(payloads(waiting), []string{"a:2", "a:3", "a:4", "a:5", "a:6"}) {
		t.Errorf("waiting: %v, %v", payloads(waiting), err)
	}
	if s := b.spool.Stats(); s.Jobs != 5 || s.Spooled != 5 || s.Since != waiting[0].At || s.Bytes == 0 {
		t.Errorf("stats: %+v", s)
	}
	b.run()
	b.drained()
	b.put(job("a", 7), false)
	b.want("a", 1, 2, 3, 4, 5, 6, 7)
	for _, id := range ids {
		if _, err := b.queue.Get(t.Context(), id); err != nil {
			t.Errorf("Get %v: %v", id, err)
		}
	}
	if s := b.spool.Stats(); s != (spool.Stats{Spooled: 5, Replayed: 5}) {
		t.Errorf("stats: %+v", s)
	}
}

// A file that has not forgotten what it has inserted, as after a crash between
// the two, inserts nothing twice.
func TestReplayTwiceInsertsOnce(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.proxy.Cut()
	for n := range 20 {
		b.put(job("a", n), true)
	}
	b.close()
	copyFile(t, b.path, b.path+".copy")
	b.proxy.Heal()
	for range 2 {
		b.open(spool.Options{}, simplequeue.Options{})
		b.run()
		b.drained()
		b.close()
		copyFile(t, b.path+".copy", b.path)
	}
	b.open(spool.Options{}, simplequeue.Options{})
	if got := b.numbers("a"); len(got) != 20 || !slices.IsSorted(got) {
		t.Errorf("jobs %v, want 0 to 19 once, in order", got)
	}
}

// An insert whose commit went through and whose answer was lost is there once,
// also where nothing is kept of a job that has ended since.
func TestAnInsertInDoubtIsMadeOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		keep  simplequeue.Retention
		fails error // what its handler returns
	}{
		"kept":                     {},
		"kept nowhere":             {keep: simplequeue.Retention{Archive: simplequeue.KeepNothing}},
		"kept nowhere if it fails": {simplequeue.Retention{DeadLetter: simplequeue.KeepNothing}, errors.New("broken")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRig(t, spool.Options{Patience: 4 * time.Second}, simplequeue.Options{})
			b.put(job("other", 0), false) // the pool is connected
			b.exec(`CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$`)
			b.exec(`CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON simplequeue.job_queue DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)
			j := job("a", 1)
			j.Retention, j.MaxAttempts = c.keep, 1
			inserted := make(chan simplequeue.Inserted, 1)
			go func() {
				r, err := b.queue.Insert(context.Background(), j)
				if err != nil {
					t.Errorf("Insert: %v", err)
				}
				inserted <- r
			}()
			eventually(t, "the commit is under way", func() (waits bool) {
				err := b.direct.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')").Scan(&waits)
				return err == nil && waits
			})
			b.proxy.DropReplies()
			r := <-inserted
			if !r.Spooled {
				t.Errorf("%+v, want it in the spool", r)
			}
			eventually(t, "the commit went through", func() bool { return len(b.numbers("a")) == 1 })
			b.exec("DROP TRIGGER wait ON simplequeue.job_queue")
			worker, err := simplequeue.New(b.direct, simplequeue.Options{Logger: quiet, Handlers: []simplequeue.Handler{
				simplequeue.HandlerFunc("a", func(context.Context, *simplequeue.Job) error { return c.fails }),
			}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- worker.Run(ctx) }()
			eventually(t, "the job has run", func() bool { return worker.Stats().Completed+worker.Stats().DeadLettered == 1 })
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			b.proxy.Heal()
			b.run()
			b.drained()
			b.want("a")
			eventually(t, "it is counted as replayed", func() bool { return b.spool.Stats().Replayed == 1 })
		})
	}
}

// The replay of an insert that has not committed yet waits for it, also where the
// time of the job has come meanwhile, so that the two insert into different tables.
func TestAReplayWaitsForTheCommitInDoubt(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	lock, err := b.direct.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_lock(7)"); err != nil {
		t.Fatal(err)
	}
	b.exec(`CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$`)
	b.exec(`CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON simplequeue.job_waiting DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hang()`)
	backend := func(waitsFor string) (waits bool) {
		err := b.direct.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1)", waitsFor).Scan(&waits)
		return err == nil && waits
	}
	due := time.Now().Add(2 * time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := b.queue.Insert(context.Background(), simplequeue.NewJob{Queue: "a", RunAt: due})
		if err != nil || !r.Spooled {
			t.Errorf("%+v, %v, want it in the spool", r, err)
		}
	}()
	eventually(t, "the commit is under way", func() bool { return backend("advisory") })
	b.proxy.Cut()
	<-done
	b.proxy.Heal()
	eventually(t, "the job is due", func() bool { return time.Now().After(due) })
	b.run()
	eventually(t, "the replay has come to it", func() bool { return backend("transactionid") || b.spool.Stats().Jobs == 0 })
	if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_unlock(7)"); err != nil {
		t.Fatal(err)
	}
	b.drained()
	eventually(t, "the commit is over", func() bool { return !backend("advisory") })
	var there int
	if err := b.direct.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM simplequeue.job_queue) + (SELECT count(*) FROM simplequeue.job_waiting)").Scan(&there); err != nil || there != 1 {
		t.Errorf("%d jobs, %v, want 1", there, err)
	}
}

// Which ids are remembered for a doubt: the job decides, else its queue, else the
// options.
func TestIDsThatAreRemembered(t *testing.T) {
	t.Parallel()
	nothing := simplequeue.KeepNothing
	for name, c := range map[string]struct {
		job  simplequeue.NewJob
		opts simplequeue.Options
		want int
	}{
		"plain":                  {},
		"due later":              {job: simplequeue.NewJob{RunAt: time.Now().Add(time.Hour)}, want: 1},
		"delayed":                {job: simplequeue.NewJob{Delay: time.Hour}, want: 1},
		"not archived":           {job: simplequeue.NewJob{Retention: simplequeue.Retention{Archive: nothing}}, want: 1},
		"no dead letter":         {job: simplequeue.NewJob{Retention: simplequeue.Retention{DeadLetter: nothing}}, want: 1},
		"no dead letter, queue":  {opts: simplequeue.Options{Queues: map[string]simplequeue.QueueOptions{"a": {Retention: simplequeue.Retention{DeadLetter: nothing}}}}, want: 1},
		"no dead letter, all":    {opts: simplequeue.Options{Retention: simplequeue.Retention{DeadLetter: nothing}}, want: 1},
		"kept against the queue": {job: simplequeue.NewJob{Retention: simplequeue.Retention{DeadLetter: time.Hour}}, opts: simplequeue.Options{Queues: map[string]simplequeue.QueueOptions{"a": {Retention: simplequeue.Retention{DeadLetter: nothing}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRig(t, spool.Options{}, c.opts)
			c.job.Queue = "a"
			b.put(c.job, false)
			var remembered int
			if err := b.direct.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_client_id").Scan(&remembered); err != nil || remembered != c.want {
				t.Errorf("%d ids are remembered, %v, want %d", remembered, err, c.want)
			}
		})
	}
}

// The spool is bounded in jobs and in bytes, what is set aside included.
func TestAFullSpoolRefuses(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{MaxJobs: 3}, simplequeue.Options{})
	b.proxy.Cut()
	if _, err := b.queue.InsertMany(t.Context(), jobs("a", 1, 4)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("a list that is too long: %v, want %v", err, spool.ErrFull)
	} else if full := (*spool.FullError)(nil); !errors.As(err, &full) || full.Err == nil || full.MaxJobs != 3 {
		t.Errorf("%+v, want why the database did not take them", full)
	}
	for n := range 3 {
		b.put(job("a", n), true)
	}
	_, err := b.queue.Insert(t.Context(), job("a", 4))
	full := (*spool.FullError)(nil)
	if !errors.As(err, &full) || full.Jobs != 3 || full.Err != nil || !strings.Contains(err.Error(), "3 of at most 3 jobs") {
		t.Errorf("a fourth job: %v", err)
	}
	b.close()
	b.open(spool.Options{MaxBytes: 2000, MaxJobs: 3}, simplequeue.Options{})
	if _, err = b.queue.Insert(t.Context(), job("a", 5)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("after opening it again: %v", err)
	}
	b.proxy.Heal()
	b.run()
	b.drained()
	b.proxy.Cut()
	if _, err := b.queue.Insert(t.Context(), simplequeue.NewJob{Queue: "a", Payload: strings.Repeat("x", 2000)}); !errors.Is(err, spool.ErrFull) {
		t.Errorf("too many bytes: %v", err)
	}
	b.put(job("a", 6), true)
	b.proxy.Heal()
	b.drained()
	b.want("a", 0, 1, 2, 6)
}

// What the database refuses stays where a person finds it, and holds up nothing.
func TestRefusedJobsAreSetAside(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no such customer' USING ERRCODE = '23503'; END $$`)
	b.exec(`CREATE TRIGGER refuse BEFORE INSERT ON simplequeue.job_queue FOR EACH ROW WHEN (NEW.kind = 'bad') EXECUTE FUNCTION refuse()`)
	b.proxy.Cut()
	for n := 1; n <= 40; n++ {
		j := job("a", n)
		if n%13 == 0 {
			j.Kind = "bad"
		}
		b.put(j, true)
	}
	list := jobs("a", 41, 42)
	list[1].Kind = "bad" // and so the whole list
	if _, err := b.queue.InsertMany(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	b.proxy.Heal()
	b.run()
	b.drained()
	var want []int
	for n := 1; n <= 40; n++ {
		if n%13 != 0 {
			want = append(want, n)
		}
	}
	b.want("a", want...)
	aside, err := b.spool.Aside(10)
	if err != nil || !slices.Equal(payloads(aside), []string{"a:13", "a:26", "a:39", "a:41", "a:42"}) {
		t.Fatalf("set aside: %v, %v", payloads(aside), err)
	}
	if !strings.Contains(aside[0].Reason, "no such customer") || aside[0].AsideAt.Before(aside[0].At) {
		t.Errorf("set aside: %+v", aside[0])
	}
	if p := b.spool.Problem(); !strings.Contains(p, "4 calls are set aside") {
		t.Errorf("problem: %q", p)
	}
	if err := b.spool.Retry(aside[0].Number, 9999); !errors.Is(err, spool.ErrNoEntry) {
		t.Errorf("retry of what is not there: %v", err)
	}
	if err := b.spool.Discard(aside[3].Number); err != nil {
		t.Fatal(err)
	}
	b.exec("DROP TRIGGER refuse ON simplequeue.job_queue")
	if err := b.spool.Retry(aside[0].Number, aside[1].Number, aside[2].Number); err != nil {
		t.Fatal(err)
	}
	b.drained()
	b.want("a", append(want, 13, 26, 39)...)
	if s := b.spool.Stats(); s.Aside != 0 || s.AsideJobs != 0 || s.Bytes != 0 || b.spool.Problem() != "" {
		t.Errorf("at the end: %+v, %q", s, b.spool.Problem())
	}
}

// A schema that is not there, or a role that lacks a grant, sets nothing aside.
func TestWhatAnOperatorCanMendIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.proxy.Cut()
	b.put(job("a", 1), true)
	b.exec("ALTER SCHEMA simplequeue RENAME TO elsewhere")
	b.proxy.Heal()
	b.run()
	eventually(t, "the replay fails", func() bool {
		err := b.spool.Stats().Err
		return err != nil && strings.Contains(err.Error(), "does not exist")
	})
	b.exec("ALTER SCHEMA elsewhere RENAME TO simplequeue")
	b.drained()
	b.want("a", 1)
	if s := b.spool.Stats(); s.Aside != 0 {
		t.Errorf("%d calls were set aside", s.Aside)
	}
}

// Jobs of a queue that is full wait, in their order; those of others pass.
func TestAFullQueueHoldsUpOnlyItsOwn(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	if err := b.queue.SetQueueLimit(t.Context(), "small", 3); err != nil {
		t.Fatal(err)
	}
	b.proxy.Cut()
	for n := 1; n <= 6; n++ {
		b.put(job("small", n), true)
		b.put(job("large", n), true)
	}
	b.proxy.Heal()
	b.run()
	eventually(t, "the others are in", func() bool { return b.spool.Stats().Jobs == 3 })
	b.want("small", 1, 2, 3)
	b.want("large", 1, 2, 3, 4, 5, 6)
	b.put(job("large", 7), true)
	eventually(t, "one more is in", func() bool { return len(b.numbers("large")) == 7 })
	eventually(t, "the spool says why", func() bool { return errors.Is(b.spool.Stats().Err, simplequeue.ErrQueueFull) })
	if _, err := b.queue.CancelMatching(t.Context(), simplequeue.Filter{Queue: "small"}, ""); err != nil {
		t.Fatal(err)
	}
	b.drained()
	b.want("small", 4, 5, 6)
}

// A call with more jobs for a queue than its limit could never be inserted: it is
// set aside, and what is behind it goes on.
func TestACallLargerThanTheLimitIsSetAside(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	if err := b.queue.SetQueueLimit(t.Context(), "small", 3); err != nil {
		t.Fatal(err)
	}
	b.proxy.Cut()
	b.put(job("small", 1), true)
	for _, list := range [][]simplequeue.NewJob{
		append(jobs("small", 2, 5), job("large", 1)),
		append(jobs("small", 6, 8), job("large", 2)), // fits when the queue is empty
	} {
		if _, err := b.queue.InsertMany(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	b.proxy.Heal()
	b.run()
	eventually(t, "the rest waits", func() bool { return errors.Is(b.spool.Stats().Err, simplequeue.ErrQueueFull) })
	b.want("small", 1)
	if s := b.spool.Stats(); s.Jobs != 4 || s.Aside != 1 || s.AsideJobs != 5 {
		t.Fatalf("%+v, want one call of 4 jobs to wait, and one of 5 set aside", s)
	}
	aside, err := b.spool.Aside(10)
	if err != nil || !strings.Contains(aside[0].Reason, `4 jobs for queue "small"`) || !strings.Contains(aside[0].Reason, "limit is 3") {
		t.Errorf("%+v, %v", aside, err)
	}
	if _, err := b.queue.CancelMatching(t.Context(), simplequeue.Filter{Queue: "small"}, ""); err != nil {
		t.Fatal(err)
	}
	b.drained()
	b.want("small", 6, 7, 8)
	b.want("large", 2)
}

// Middleware sees an insert once, in its caller's context, and what it makes of
// the jobs is what lies on the disk.
func TestMiddlewareRunsBeforeTheSpool(t *testing.T) {
	t.Parallel()
	type tenant struct{}
	calls := 0
	b := newRig(t, spool.Options{}, simplequeue.Options{InsertMiddleware: []simplequeue.InsertMiddleware{
		func(next simplequeue.InsertFunc) simplequeue.InsertFunc {
			return func(ctx context.Context, jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
				calls++
				if jobs[0].Kind == "refused" {
					return nil, errors.New("refused by middleware")
				}
				jobs[0].Payload, jobs[0].Metadata = "secret no more", map[string]string{"tenant": ctx.Value(tenant{}).(string)}
				return next(ctx, jobs)
			}
		},
	}})
	b.proxy.Cut()
	ctx := context.WithValue(t.Context(), tenant{}, "acme")
	r, err := b.queue.Insert(ctx, simplequeue.NewJob{Queue: "a", Payload: "plain text"})
	if err != nil || !r.Spooled {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := b.queue.Insert(ctx, simplequeue.NewJob{Queue: "a", Kind: "refused"}); err == nil || err.Error() != "refused by middleware" {
		t.Errorf("a job that middleware refuses: %v", err)
	}
	text, err := os.ReadFile(b.path)
	if err != nil || bytes.Contains(text, []byte("plain text")) || !bytes.Contains(text, []byte("secret no more")) {
		t.Errorf("the file does not hold what middleware made of the job (%v)", err)
	}
	b.proxy.Heal()
	b.run()
	b.drained()
	info, err := b.queue.Get(t.Context(), r.ID)
	if err != nil || string(info.Payload) != `"secret no more"` || info.Metadata["tenant"] != "acme" || calls != 2 {
		t.Errorf("%s %v after %d calls of the middleware, %v", info.Payload, info.Metadata, calls, err)
	}
}

// A job that no replay could insert is refused at once, and what the database
// has said about a job goes to the caller.
func TestBadJobsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	if err := b.queue.SetQueueLimit(t.Context(), "small", 1); err != nil {
		t.Fatal(err)
	}
	b.put(job("small", 1), false)
	if _, err := b.queue.Insert(t.Context(), job("small", 2)); !errors.Is(err, simplequeue.ErrQueueFull) {
		t.Errorf("full queue: %v", err)
	}
	b.proxy.Cut()
	b.put(job("a", 1), true)
	id := uuid.New()
	for field, list := range map[string][]simplequeue.NewJob{
		"Queue":    {job("a", 1), job("", 1)},
		"Payload":  {{Queue: "a", Payload: make(chan int)}},
		"Priority": {{Queue: "a", Priority: 10}},
		"ID":       {{Queue: "a", ID: id}, {Queue: "a", ID: id}},
	} {
		var invalid *simplequeue.InvalidJobError
		if _, err := b.queue.InsertMany(t.Context(), list); !errors.As(err, &invalid) || invalid.Field != field || invalid.Index != len(list)-1 {
			t.Errorf("%s: %v", field, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.queue.Insert(ctx, job("a", 2)); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that was cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if r, err := b.queue.Insert(ctx, job("a", 3)); err != nil || !r.Spooled {
		t.Errorf("a context whose time is over: %+v, %v", r, err)
	}
	if s := b.spool.Stats(); s.Jobs != 2 {
		t.Errorf("%d jobs wait, want 2", s.Jobs)
	}
}

// A database that swallows everything costs the patience once, not each insert.
func TestABlackholeCostsPatienceOnce(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{Patience: 2 * time.Second}, simplequeue.Options{})
	b.put(job("a", 0), false)
	b.proxy.Blackhole()
	began := time.Now()
	for n := 1; n <= 50; n++ {
		b.put(job("a", n), true)
	}
	if took := time.Since(began); took < 2*time.Second || took > 20*time.Second {
		t.Errorf("50 inserts took %v, want little more than 2 s", took)
	}
	b.proxy.Heal()
	b.run()
	b.drained()
	if got := b.numbers("a"); len(got) != 51 || !slices.IsSorted(got) {
		t.Errorf("jobs %v", got)
	}
}

// Inserts of many goroutines at once, while the database comes and goes: each is
// there once, and those of one goroutine in its order.
func TestManyGoroutinesAndAnUnsteadyDatabase(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{Patience: 2 * time.Second}, simplequeue.Options{})
	b.run()
	const many = 60
	queues := []string{"a", "b", "c", "d", "e", "f"}
	var wg sync.WaitGroup
	for _, queue := range queues {
		wg.Go(func() {
			for n := range many {
				if _, err := b.queue.Insert(context.Background(), job(queue, n)); err != nil {
					t.Errorf("insert: %v", err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for range 4 {
		time.Sleep(40 * time.Millisecond)
		b.proxy.Cut()
		time.Sleep(40 * time.Millisecond)
		b.proxy.Heal()
	}
	wg.Wait()
	b.drained()
	for _, queue := range queues {
		if got := b.numbers(queue); len(got) != many || !slices.IsSorted(got) {
			t.Errorf("queue %s holds %v, want 0 to %d once, in order", queue, got, many-1)
		}
	}
}

// A call with an id that waits already is skipped, as one with an id that is
// known.
func TestAChosenIDTwiceInTheSpool(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.proxy.Cut()
	j := job("a", 1)
	j.ID = uuid.New()
	b.put(j, true)
	b.put(j, true)
	b.put(job("a", 2), true)
	b.proxy.Heal()
	b.run()
	b.drained()
	b.want("a", 1, 2)
}

// The life of the file: one process, one schema, one SimpleQueue.
func TestTheFileHasOneOwner(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	if _, err := spool.Open(b.path, spool.Options{}); !errors.Is(err, spool.ErrInUse) || !strings.Contains(err.Error(), b.path) {
		t.Errorf("a second Open: %v", err)
	}
	var invalid *simplequeue.InvalidOptionError
	if _, err := simplequeue.New(b.direct, simplequeue.Options{Spool: b.spool}); !errors.As(err, &invalid) || invalid.Option != "Spool" {
		t.Errorf("a second SimpleQueue: %v", err)
	}
	b.close()
	other, err := spool.Open(b.path, spool.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Run(t.Context()); err == nil {
		t.Error("Run without a SimpleQueue: no error")
	}
	if _, err := simplequeue.New(b.direct, simplequeue.Options{Spool: other, Schema: "elsewhere"}); err == nil || !strings.Contains(err.Error(), `"elsewhere"`) {
		t.Errorf("another schema: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	b.open(spool.Options{}, simplequeue.Options{})
	b.proxy.Cut()
	b.put(job("a", 0), true)
	b.proxy.Heal()
	b.run()
	b.drained() // so it is at work
	if err := b.spool.Run(t.Context()); !errors.Is(err, spool.ErrRunning) {
		t.Errorf("a second Run: %v", err)
	}
	b.stop()
	b.proxy.Cut()
	if err := b.spool.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.queue.Insert(t.Context(), job("a", 1)); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("insert into a closed spool: %v", err)
	}
	if err := b.spool.Run(t.Context()); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Run of a closed spool: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.spool")
	for field, opts := range map[string]spool.Options{
		"MaxJobs": {MaxJobs: -1}, "MaxBytes": {MaxBytes: -1}, "Patience": {Patience: -1},
	} {
		var invalid *spool.InvalidOptionError
		if _, err := spool.Open(path, opts); !errors.As(err, &invalid) || invalid.Option != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := spool.Open(filepath.Join(path, "no", "folder"), spool.Options{}); err == nil {
		t.Error("a folder that is not there: no error")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made: %v", err)
	}
}

// Operators see that jobs wait.
func TestHealthTellsOfTheSpool(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{PollOnly: true, Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("other", func(context.Context, *simplequeue.Job) error { return nil }),
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.queue.Run(ctx) }()
	eventually(t, "the engine is well", func() bool { return b.queue.Health().OK })
	b.proxy.Cut()
	b.put(job("a", 1), true)
	b.proxy.Heal()
	eventually(t, "health tells of the spool", func() bool {
		h := b.queue.Health()
		return !h.OK && len(h.Problems) == 1 && strings.Contains(h.Problems[0], "1 jobs wait in "+b.path)
	})
	b.run()
	eventually(t, "the engine is well again", func() bool { return b.queue.Health().OK })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Under a steady stream of inserts the replay comes to an end all the same, and
// they go to the database again: they wait for it when it has little left.
func TestASteadyStreamGoesToTheDatabaseAgain(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$`)
	b.exec(`CREATE TRIGGER slow AFTER INSERT ON simplequeue.job_queue FOR EACH STATEMENT EXECUTE FUNCTION slow()`)
	b.proxy.Cut()
	queues := []string{"a", "b", "c", "d"}
	var direct, through [4]atomic.Int64
	var counts [4]int
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i, queue := range queues {
		wg.Go(func() {
			for ; ctx.Err() == nil && direct[i].Load() < 3; counts[i]++ {
				r, err := b.queue.Insert(context.Background(), job(queue, counts[i]))
				if err != nil {
					t.Errorf("insert: %v", err)
					return
				}
				if !r.Spooled {
					direct[i].Add(1)
					continue
				}
				through[i].Add(1)
				time.Sleep(time.Millisecond) // so the replay is faster than the stream
			}
		})
	}
	for i, queue := range queues {
		eventually(t, queue+" goes to the file", func() bool { return through[i].Load() >= 20 })
	}
	b.proxy.Heal()
	b.run()
	wg.Wait()
	b.drained()
	for i, queue := range queues {
		if direct[i].Load() < 3 {
			t.Errorf("%d inserts into queue %s went to the database in 20 s, want 3", direct[i].Load(), queue)
		}
		if got := b.numbers(queue); len(got) != counts[i] || !slices.IsSorted(got) {
			t.Errorf("queue %s holds %d jobs, want 0 to %d once, in order: %v", queue, len(got), counts[i]-1, got)
		}
	}
}

// An insert that waits for the end of a replay that has stalled waits for its
// patience, and those after it do not wait.
func TestAStalledReplayCostsPatienceOnce(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{Patience: 300 * time.Millisecond}, simplequeue.Options{})
	b.exec(`CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$`)
	b.exec(`CREATE TRIGGER stall BEFORE INSERT ON simplequeue.job_queue FOR EACH ROW WHEN (NEW.kind = 'stalls') EXECUTE FUNCTION stall()`)
	b.proxy.Cut()
	for n := range 501 { // more than a transaction
		j := job("a", n)
		if n == 500 {
			j.Kind = "stalls"
		}
		b.put(j, true)
	}
	lock, err := b.direct.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_lock(7)"); err != nil {
		t.Fatal(err)
	}
	b.proxy.Heal()
	b.run()
	eventually(t, "the replay stalls", func() bool { return b.spool.Stats().Jobs == 1 })
	began := time.Now()
	b.put(job("a", 501), true)
	first := time.Since(began)
	for n := 502; n < 522; n++ {
		b.put(job("a", n), true)
	}
	if all := time.Since(began); first < 300*time.Millisecond || all > first+4*time.Second {
		t.Errorf("the first insert took %v, all %v", first, all)
	}
	if _, err := lock.Exec(t.Context(), "SELECT pg_advisory_unlock(7)"); err != nil {
		t.Fatal(err)
	}
	b.drained()
	if got := b.numbers("a"); len(got) != 522 || !slices.IsSorted(got) {
		t.Errorf("jobs %v, want 0 to 521 once, in order", got)
	}
}

// What comes behind a call that waits for a full queue, and has a queue in common
// with it, waits too, also where there would be room.
func TestNothingOvertakesACallThatWaitsForAQueue(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	if err := b.queue.SetQueueLimit(t.Context(), "small", 3); err != nil {
		t.Fatal(err)
	}
	b.proxy.Cut()
	b.put(job("small", 1), true)
	b.put(job("small", 2), true)
	for _, list := range [][]simplequeue.NewJob{
		jobs("small", 3, 4), // one place is left
		{job("small", 5), job("large", 1)},
	} {
		if _, err := b.queue.InsertMany(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	b.put(job("large", 2), true)
	b.put(job("other", 1), true)
	b.proxy.Heal()
	b.run()
	eventually(t, "the rest waits", func() bool {
		return errors.Is(b.spool.Stats().Err, simplequeue.ErrQueueFull) && len(b.numbers("other")) == 1
	})
	b.want("small", 1, 2)
	b.want("large")
	if err := b.queue.SetQueueLimit(t.Context(), "small", simplequeue.Unlimited); err != nil {
		t.Fatal(err)
	}
	b.drained()
	b.want("small", 1, 2, 3, 4, 5)
	b.want("large", 1, 2)
}

// What a job says of order, shares and waiting is what it has in the end; a hold
// is not kept, for its commit would not find it.
func TestJobsAtGatesInTheSpool(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	held := simplequeue.NewJob{Queue: "a", Hold: time.Hour}
	b.put(held, false)
	b.proxy.Cut()
	if _, err := b.queue.Insert(t.Context(), held); !errors.Is(err, spool.ErrHold) || strings.Contains(err.Error(), "others wait") {
		t.Errorf("a held job without a database: %v", err)
	}
	var ids []uuid.UUID
	for range 3 {
		ids = append(ids, b.put(simplequeue.NewJob{Queue: "a", OrderKey: "o", FairnessKey: "f", Awaited: true}, true).ID)
	}
	if info, err := b.queue.InsertAndWait(t.Context(), simplequeue.NewJob{Queue: "b"}); !errors.Is(err, simplequeue.ErrSpooled) || info.ID == uuid.Nil {
		t.Errorf("InsertAndWait: %v, %v", info.ID, err)
	}
	b.proxy.Heal()
	if _, err := b.queue.InsertMany(t.Context(), []simplequeue.NewJob{job("a", 1), held}); !errors.Is(err, spool.ErrHold) {
		t.Errorf("a held job behind others: %v", err)
	}
	b.run()
	b.drained()
	var places []int64
	for _, id := range ids {
		info, err := b.queue.Get(t.Context(), id)
		if err != nil || info.OrderKey != "o" || info.FairnessKey != "f" || info.State != simplequeue.StateWaiting {
			t.Errorf("%+v, %v", info, err)
		}
		var place int64
		var awaited bool
		if err := b.direct.QueryRow(t.Context(), `SELECT g.place, coalesce((w.props ->> 'awaited')::boolean, false)
			FROM simplequeue.job_gated AS g JOIN simplequeue.job_waiting AS w ON w.id = g.job_id WHERE g.job_id = $1`, id).Scan(&place, &awaited); err != nil || !awaited {
			t.Errorf("awaited %v, %v", awaited, err)
		}
		places = append(places, place)
	}
	if !slices.IsSorted(places) {
		t.Errorf("places %v, want them in order", places)
	}
}
