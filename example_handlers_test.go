package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// The jobs of a queue go to handlers by their kind.
func ExampleMux() {
	mails := simplequeue.NewMux("mails").
		HandleFunc("welcome", func(_ context.Context, job *simplequeue.Job) error {
			fmt.Println("welcome,", string(job.Payload))
			return nil
		}).
		Handle("invoice", simplequeue.Typed("mails", func(_ context.Context, _ *simplequeue.Job, number int) error {
			fmt.Println("invoice", number)
			return nil
		}))

	fmt.Println(runExample(mails, simplequeue.NewJob{Queue: "mails", Kind: "welcome", Payload: "ada"}).State)
	fmt.Println(runExample(mails, simplequeue.NewJob{Queue: "mails", Kind: "invoice", Payload: 17}).State)
	// Output:
	// welcome, "ada"
	// completed
	// invoice 17
	// completed
}

// busyError says for how long the other side wants to be left alone.
type busyError struct{ retryAfter time.Duration }

func (e busyError) Error() string { return fmt.Sprintf("busy for %v", e.retryAfter) }

// The error says how long to wait; after any other the next attempt is made as
// ever.
func ExampleBackoffFunc() {
	var t exampleTB
	defer t.cleanup()
	opts := handler("calls", func(_ context.Context, job *simplequeue.Job) error {
		fmt.Println("attempt", job.Attempt)
		if job.Attempt == 1 {
			return fmt.Errorf("call: %w", busyError{20 * time.Millisecond})
		}
		return nil
	})
	opts.Queues = map[string]simplequeue.QueueOptions{"calls": {
		Timeout: time.Minute,
		Backoff: simplequeue.BackoffFunc(func(job *simplequeue.Job, err error) time.Duration {
			if busy := (busyError{}); errors.As(err, &busy) {
				return busy.retryAfter
			}
			return backoff.Default.Delay(job.Attempt)
		}),
	}}
	q := newQueue(&t, pgtest.New(&t), opts)
	stop := start(&t, q)
	defer func() { _ = stop() }()
	job, err := q.InsertAndWait(context.Background(), simplequeue.NewJob{Queue: "calls"})
	fmt.Println(job.State, err)
	fmt.Println(job.LastError())
	// Output:
	// attempt 1
	// attempt 2
	// completed <nil>
	// call: busy for 20ms
}

// What a handler logs is kept with its job.
func ExampleLogger() {
	var t exampleTB
	defer t.cleanup()
	opts := handler("imports", func(ctx context.Context, _ *simplequeue.Job) error {
		simplequeue.Logger(ctx).Info("imported", "rows", 3)
		return nil
	})
	opts.LogSink = simplequeue.LogTable()
	q := newQueue(&t, pgtest.New(&t), opts)
	stop := start(&t, q)
	ctx := context.Background()
	job, err := q.InsertAndWait(ctx, simplequeue.NewJob{Queue: "imports"})
	if err != nil {
		fmt.Println(err)
	}
	if err := stop(); err != nil { // what has not been written yet is written then
		fmt.Println(err)
	}
	for line, err := range q.JobLog(ctx, job.ID) {
		fmt.Println(line.Attempt, line.Level, line.Message, string(line.Attrs), err)
	}
	// Output: 1 INFO imported {"rows": 3} <nil>
}

// A handler's return value is stored with its job's completion.
func ExampleTypedResult() {
	sums := simplequeue.TypedResult("sums", func(_ context.Context, _ *simplequeue.Job, terms []int) (int, error) {
		sum := 0
		for _, n := range terms {
			sum += n
		}
		return sum, nil
	})

	job := runExample(sums, simplequeue.NewJob{Queue: "sums", Payload: []int{1, 2, 3}})
	sum, err := simplequeue.ResultOf[int](job)
	fmt.Println(job.State, sum, err)
	// Output: completed 6 <nil>
}

// The second attempt goes on where the first one was.
func ExampleJob_Checkpoint() {
	count := simplequeue.Typed("counts", func(ctx context.Context, job *simplequeue.Job, n int) error {
		for ; n < 4; n++ {
			fmt.Println("attempt", job.Attempt, "does", n)
			if err := job.Checkpoint(ctx, n+1, nil); err != nil {
				return err
			}
			if n == 1 {
				return simplequeue.RetryAfter(0, errors.New("interrupted"))
			}
		}
		return nil
	})

	job := runExample(count, simplequeue.NewJob{Queue: "counts", Payload: 0})
	fmt.Println(job.State)
	// Output:
	// attempt 1 does 0
	// attempt 1 does 1
	// attempt 2 does 2
	// attempt 2 does 3
	// completed
}

// The card is charged once, although its job is tried twice.
func ExampleStep() {
	orders := simplequeue.HandlerFunc("orders", func(ctx context.Context, job *simplequeue.Job) error {
		charge, err := simplequeue.Step(ctx, job, "charge", func(context.Context) (string, error) {
			fmt.Println("charging")
			return "charge 17", nil
		})
		if err != nil {
			return err
		}
		if job.Attempt == 1 {
			return simplequeue.RetryAfter(0, errors.New("the mail server is away"))
		}
		fmt.Println("mailing about", charge)
		return nil
	})

	job := runExample(orders, simplequeue.NewJob{Queue: "orders"})
	fmt.Println(job.State)
	// Output:
	// charging
	// mailing about charge 17
	// completed
}

// What the handler writes and the completion of its job are one transaction.
func ExampleJob_CompleteTx() {
	var t exampleTB
	defer t.cleanup()
	pool := pgtest.New(&t)
	transfers := simplequeue.HandlerFunc("transfers", func(ctx context.Context, job *simplequeue.Job) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "CREATE TABLE transfer AS SELECT 100 AS amount"); err != nil {
				return err
			}
			return job.CompleteTx(ctx, tx)
		})
	})

	job := runExampleOn(&t, pool, transfers, simplequeue.NewJob{Queue: "transfers"})
	fmt.Println(job.State, "in attempt", job.Attempt)
	// Output: completed in attempt 1
}

// runExample runs a job to its end in a database of its own.
func runExample(h simplequeue.Handler, job simplequeue.NewJob) simplequeue.JobInfo {
	var t exampleTB
	defer t.cleanup()
	return runExampleOn(&t, pgtest.New(&t), h, job)
}

func runExampleOn(t *exampleTB, pool *pgxpool.Pool, h simplequeue.Handler, job simplequeue.NewJob) simplequeue.JobInfo {
	q := newQueue(t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{h}, Logger: slog.New(slog.DiscardHandler),
	})
	stop := start(t, q)
	defer func() { _ = stop() }()
	inserted, err := q.Insert(context.Background(), job)
	if err != nil {
		panic(err)
	}
	var info simplequeue.JobInfo
	eventually(t, "the job has ended", func() bool {
		info = get(t, q, inserted.ID)
		return info.State.Terminal()
	})
	return info
}

// exampleTB lends the helpers of the tests to examples.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (*exampleTB) Helper()                           {}
func (*exampleTB) Context() context.Context          { return context.Background() }
func (*exampleTB) Logf(string, ...any)               {}
func (*exampleTB) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (t *exampleTB) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

func (t *exampleTB) cleanup() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}
