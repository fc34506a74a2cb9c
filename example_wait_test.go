package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// A job is inserted and its result waited for, wherever it runs.
func ExampleSimpleQueue_InsertAndWait() {
	var t exampleTB
	defer t.cleanup()
	pool := pgtest.New(&t)
	worker := newQueue(&t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{
			simplequeue.TypedResult("quotients", func(_ context.Context, _ *simplequeue.Job, n [2]int) (int, error) {
				if n[1] == 0 {
					return 0, simplequeue.Unprocessable(errors.New("division by zero"))
				}
				return n[0] / n[1], nil
			}),
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	stop := start(&t, worker) // in this program or another
	defer func() { _ = stop() }()

	q := newQueue(&t, pool, simplequeue.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, terms := range [][2]int{{42, 6}, {1, 0}} {
		job, err := q.InsertAndWait(ctx, simplequeue.NewJob{Queue: "quotients", Payload: terms})
		var not *simplequeue.NotCompletedError
		if errors.As(err, &not) {
			fmt.Println(not.Job.State, "because of a", not.Job.LastError())
			continue
		}
		quotient, err := simplequeue.ResultOf[int](job)
		fmt.Println(quotient, err)
	}
	// Output:
	// 7 <nil>
	// unprocessable because of a division by zero
}

// Jobs that are inserted together are waited for one after the other, here or in
// another process.
func ExampleSimpleQueue_Wait() {
	var t exampleTB
	defer t.cleanup()
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.TypedResult("squares", func(_ context.Context, _ *simplequeue.Job, n int) (int, error) { return n * n, nil }),
	}})
	start(&t, q)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	inserted, err := q.InsertMany(ctx, []simplequeue.NewJob{
		{Queue: "squares", Payload: 3, Awaited: true}, {Queue: "squares", Payload: 4, Awaited: true},
	})
	if err != nil {
		fmt.Println(err)
	}
	for _, in := range inserted {
		job, err := q.Wait(ctx, in.ID)
		if err != nil {
			fmt.Println(err)
		}
		fmt.Println(simplequeue.ResultOf[int](job))
	}
	// Output:
	// 9 <nil>
	// 16 <nil>
}
