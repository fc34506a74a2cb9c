package simplequeuetest_test

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
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

// Signup is a part of a program. Its jobs are inserted with what they are about.
type Signup struct {
	Pool  *pgxpool.Pool
	Queue *simplequeue.SimpleQueue
}

type welcome struct{ To string }

func newSignup(pool *pgxpool.Pool, schema string) *Signup {
	send := func(_ context.Context, job *simplequeue.Job, mail welcome) error {
		if job.Attempt == 1 {
			return errors.New("the mail server is away")
		}
		fmt.Println("mail to", mail.To)
		return nil
	}
	q, err := simplequeue.New(pool, simplequeue.Options{
		Schema: schema, Logger: slog.New(slog.DiscardHandler), Backoff: backoff.Constant(time.Minute),
		Handlers: []simplequeue.Handler{simplequeue.Typed("mails", send)},
	})
	if err != nil {
		panic(err)
	}
	return &Signup{Pool: pool, Queue: q}
}

func (s *Signup) add(ctx context.Context, tx pgx.Tx, name string) error {
	_, err := s.Queue.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "mails", Kind: "welcome", Payload: welcome{To: name}})
	return err
}

// In a test, t is the test's, and the pool the program's.
func exampleTest() (t *exampleTB, pool *pgxpool.Pool) {
	t = &exampleTB{}
	return t, pgtest.New(t)
}

// What the program has inserted in a transaction is looked at, and worked, there.
// Nothing is left of it.
func ExampleIn() {
	t, pool := exampleTest()
	defer t.end()
	signup := newSignup(pool, "simplequeue")
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()

	if err := signup.add(t.Context(), tx, "ada"); err != nil {
		t.Fatal(err)
	}
	q := simplequeuetest.In(tx, signup.Queue)
	simplequeuetest.Inserted(t, q, 1, simplequeue.NewJob{Queue: "mails", Payload: welcome{To: "ada"}})

	for _, o := range simplequeuetest.Work(t, q) {
		fmt.Println(o.State, o.Reason, o.Err)
	}
	simplequeuetest.Advance(t, q, time.Minute)
	for _, o := range simplequeuetest.Work(t, q) {
		fmt.Println(o.State, "in attempt", o.Attempt)
	}
	// Output:
	// waiting retry the mail server is away
	// mail to ada
	// completed in attempt 2
}

// A program that uses more than one transaction is tested in a schema of the
// test's own.
func ExampleSchema() {
	t, pool := exampleTest()
	defer t.end()
	signup := newSignup(pool, simplequeuetest.Schema(t, pool))

	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return signup.add(t.Context(), tx, "ada") })
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(simplequeuetest.WorkOne(t, signup.Queue).State)
	// Output: waiting
}

// A handler is called by hand, with a job that is in its last attempt.
func ExampleProcess() {
	t := &exampleTB{}
	handler := simplequeue.HandlerFunc("reports", func(context.Context, *simplequeue.Job) error {
		return errors.New("no data")
	})
	o := simplequeuetest.Process(t, handler, simplequeue.NewJob{MaxAttempts: 5}, func(job *simplequeue.Job) { job.Attempt = 5 })
	fmt.Println(o.State, o.Err)
	// Output: failed no data
}

// exampleTB is a test for examples, which have none.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (*exampleTB) Helper()                           {}
func (*exampleTB) Failed() bool                      { return false }
func (*exampleTB) Context() context.Context          { return context.Background() }
func (*exampleTB) Logf(string, ...any)               {}
func (*exampleTB) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (t *exampleTB) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

func (t *exampleTB) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}
