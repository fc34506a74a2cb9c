//go:build unix

package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
)

func init() {
	// A process that begins all sorts of things and ends none of them, but for a
	// job that is cancelled. Its argument is the id of a held job.
	scenarios["unfinished"] = func(w *workerProcess) {
		ctx := context.Background()
		began := func(what string, err error) {
			if err != nil {
				w.say("error: %s: %v", what, err)
			}
			w.say("began %s", what)
		}
		q := w.queue(simplequeue.Options{HeartbeatInterval: 500 * time.Millisecond, Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("checkpoint", func(ctx context.Context, job *simplequeue.Job) error {
				began("checkpoint", job.Checkpoint(ctx, "half", nil))
				select {}
			}),
			simplequeue.Batch("batch", 3, time.Minute, func(_ context.Context, jobs []*simplequeue.Job) error {
				began(fmt.Sprint("a batch of ", len(jobs)), nil)
				select {}
			}),
			simplequeue.HandlerFunc("deaf", func(context.Context, *simplequeue.Job) error {
				began("deaf", nil)
				select {}
			}),
			simplequeue.HandlerFunc("stops", func(ctx context.Context, _ *simplequeue.Job) error {
				began("stops", nil)
				<-ctx.Done()
				w.say("stopped: %v", context.Cause(ctx))
				return ctx.Err()
			}),
		}})
		go func() { w.say("error: %v", q.Run(ctx)) }()

		_, err := q.Insert(ctx, simplequeue.NewJob{Queue: "held", UniqueKey: "lost", Hold: time.Hour})
		began("hold", err)
		tx, err := w.pool.Begin(ctx)
		if err == nil {
			_, err = q.CommitHeldTx(ctx, tx, uuid.MustParse(w.argument))
		}
		began("commit", err)

		list, err := q.Claim(ctx, "hand", 1, 3*time.Second)
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("%d claimed", len(list))
		}
		began("hand", err)
		for err == nil {
			time.Sleep(50 * time.Millisecond)
			err = list[0].Extend(ctx)
		}
		w.say("error: extend: %v", err)
	}

	// A process that fills a queue with a limit, a list and a transaction at a
	// time, some of which it rolls back.
	scenarios["fills"] = func(w *workerProcess) {
		q := w.queue(simplequeue.Options{})
		for i := 0; ; i++ {
			err := pgx.BeginFunc(context.Background(), w.pool, func(tx pgx.Tx) error {
				_, err := q.InsertManyTx(context.Background(), tx, repeat(1+i%3, simplequeue.NewJob{Queue: "a"}))
				if err == nil && i%4 == 3 {
					return errRolledBack
				}
				return err
			})
			switch {
			case err == nil:
				w.say("inserted")
			case errors.Is(err, simplequeue.ErrQueueFull):
				time.Sleep(time.Millisecond)
			case !errors.Is(err, errRolledBack):
				w.say("error: %v", err)
			}
		}
	}
}

// What a process had begun when it was killed is taken up where it stands: a job
// with its checkpoint, those of a batch one by one, a job claimed by hand. A job
// whose hold it was to commit is held as before, one that it held itself can
// expire, and one that it was asked to stop has ended as cancelled for whoever
// waits for that.
func TestAKilledProcessLeavesNothingUndone(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 8)
	q := newQueue(t, pool, simplequeue.Options{})
	j, err := janitor.New(pool, janitor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Once(t.Context()); err != nil { // no partition is made while jobs are looked for
		t.Fatal(err)
	}
	ids := map[string]uuid.UUID{}
	for _, queue := range []string{"checkpoint", "hand", "deaf", "stops"} {
		ids[queue] = insert(t, q, simplequeue.NewJob{Queue: queue, Payload: "whole"})
	}
	batch := insertMany(t, q, 3, simplequeue.NewJob{Queue: "batch"})
	held := insert(t, q, simplequeue.NewJob{Queue: "held", Hold: time.Hour})

	p := startProcess(t, "unfinished", url, held.String())
	for _, what := range []string{"checkpoint", "a batch of 3", "deaf", "stops", "hold", "commit", "hand"} {
		eventually(t, what+" has begun", func() bool { return p.count("began "+what) >= 1 })
	}
	soon, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if s, err := q.CancelAndWait(soon, ids["stops"], "enough"); err != nil || s != simplequeue.StateCancelled {
		t.Errorf("a job of another process, cancelled, is %s, %v", s, err)
	}
	eventually(t, "its handler has heard of it", func() bool { return p.count("stopped: "+simplequeue.ErrCancelled.Error()) == 1 })
	cancelled := make(chan error, 1)
	go func() {
		s, err := q.CancelAndWait(soon, ids["deaf"], "enough")
		if s != simplequeue.StateCancelled {
			err = errors.Join(fmt.Errorf("it is %s", s), err)
		}
		cancelled <- err
	}()
	awaitState(t, q, ids["deaf"], simplequeue.StateCancelling)
	p.signal(t, syscall.SIGKILL)
	p.awaitEnd(t)
	if n := p.count("error"); n != 0 {
		t.Fatalf("the process said: %q", p.lines)
	}

	next := simplequeue.Options{HeartbeatInterval: 500 * time.Millisecond, JanitorInterval: 50 * time.Millisecond, Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("checkpoint", func(_ context.Context, job *simplequeue.Job) error {
			if string(job.Payload) != `"half"` {
				return simplequeue.Critical(fmt.Errorf("the payload is %s", job.Payload))
			}
			return nil
		}),
		simplequeue.Batch("batch", 3, time.Minute, func(_ context.Context, jobs []*simplequeue.Job) error {
			if len(jobs) != 1 {
				return simplequeue.Critical(fmt.Errorf("a batch of %d", len(jobs)))
			}
			return nil
		}),
		simplequeue.HandlerFunc("held", nothing),
	}}
	start(t, newQueue(t, pool, next))
	for _, id := range append(batch, ids["checkpoint"]) {
		info := awaitEnd(t, q, id)
		if info.State != simplequeue.StateCompleted || info.Attempt < 2 || info.CrashCount < 1 {
			t.Errorf("a job of queue %s is %s after %d attempts and %d crashes: %s", info.Queue, info.State, info.Attempt, info.CrashCount, info.LastError())
		}
	}
	awaitState(t, q, ids["hand"], simplequeue.StatePending)
	if l := claimOne(t, q, "hand"); l.Job.ID != ids["hand"] || l.Job.Attempt != 2 || l.Job.CrashCount != 1 || l.Settle(t.Context(), nil) != nil {
		t.Errorf("claimed again: %+v", l.Job)
	}
	if err := <-cancelled; err != nil {
		t.Errorf("a job of a killed process, cancelled: %v", err)
	}
	if info := get(t, q, held); info.Reason != "held" {
		t.Errorf("the job whose hold the process was to commit: %s, %s", info.State, info.Reason)
	}
	if done, err := q.CommitHeld(t.Context(), held); err != nil || len(done) != 1 {
		t.Errorf("committed: %v, %v", done, err)
	}
	awaitState(t, q, held, simplequeue.StateCompleted)
	execute(t, pool, "UPDATE simplequeue.job_held SET expires_at = now()")
	eventually(t, "the process's hold is over", func() bool { return countRows(t, pool, "job_live") == 0 })
	insert(t, q, simplequeue.NewJob{Queue: "held", UniqueKey: "lost"})
}

// Two processes that fill a queue never get past its limit; one that is killed,
// whatever it was doing, neither stops the other nor keeps a place.
func TestBoundedQueueSurvivesItsInserters(t *testing.T) {
	t.Parallel()
	const most = 5
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 8)
	q := newQueue(t, pool, handler("a", nothing))
	limit(t, q, most)
	stop := start(t, q)
	procs := []*process{startProcess(t, "fills", url, ""), startProcess(t, "fills", url, "")}
	inserted := func(p *process) {
		t.Helper()
		before := p.count("inserted")
		eventually(t, "a process has inserted", func() bool {
			if n := live(t, pool); n > most {
				t.Errorf("%d live jobs, the limit is %d", n, most)
			}
			return p.count("inserted") > before+10
		})
	}
	for _, p := range procs {
		inserted(p)
	}
	for i, p := range procs {
		p.signal(t, syscall.SIGKILL)
		p.awaitEnd(t)
		if i == 0 {
			inserted(procs[1])
		}
		if n := p.count("error"); n != 0 {
			t.Errorf("a process said: %q", p.lines)
		}
	}
	// The last of the killed may have had a transaction open.
	eventually(t, "all have run", func() bool {
		return queryOne[int](t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND xact_start IS NOT NULL`) == 0 && live(t, pool) == 0
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := q.InsertMany(t.Context(), repeat(most, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Error(err)
	}
	_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"})
	mustBeFull(t, err, most)
	slotsAddUp(t, pool)
}
