package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

// A dead job keeps its customer's events back until somebody has looked at it.
func ExampleSimpleQueue_ReleaseKey() {
	var t exampleTB
	defer t.cleanup()
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{
		Queues: map[string]simplequeue.QueueOptions{"webhooks": {BlockDead: true}},
		Handlers: []simplequeue.Handler{
			simplequeue.Typed("webhooks", func(_ context.Context, _ *simplequeue.Job, event string) error {
				if event == "created" {
					return simplequeue.Critical(errors.New("refused by the receiver"))
				}
				fmt.Println("delivered:", event)
				return nil
			}),
		},
	})
	ctx := context.Background()
	in, err := q.InsertMany(ctx, []simplequeue.NewJob{
		{Queue: "webhooks", OrderKey: "customer 7", Payload: "created"},
		{Queue: "webhooks", OrderKey: "customer 7", Payload: "renamed"},
		{Queue: "webhooks", OrderKey: "customer 8", Payload: "deleted"},
	})
	if err != nil {
		panic(err)
	}
	start(&t, q)
	state := func(n int) simplequeue.State {
		job, err := q.Wait(ctx, in[n].ID)
		if not := (*simplequeue.NotCompletedError)(nil); err != nil && !errors.As(err, &not) {
			panic(err)
		}
		return job.State
	}
	fmt.Println(state(2), state(0))
	blocked, err := q.BlockedKeys(ctx, "webhooks")
	for _, k := range blocked {
		fmt.Println("closed:", k.OrderKey, k.JobID == in[0].ID)
	}
	fmt.Println(len(blocked), err, q.ReleaseKey(ctx, "webhooks", "customer 7"))
	fmt.Println(state(1))
	// Output:
	// delivered: deleted
	// completed critical_failure
	// closed: customer 7 true
	// 1 <nil> <nil>
	// delivered: renamed
	// completed
}

// One job at a time in all processes together, in the order of the inserts.
func ExampleQueueOptions_fifo() {
	var t exampleTB
	defer t.cleanup()
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{
		Queues: map[string]simplequeue.QueueOptions{"ledger": {FIFO: true}},
		Handlers: []simplequeue.Handler{simplequeue.Typed("ledger", func(_ context.Context, job *simplequeue.Job, entry int) error {
			if entry == 1 && job.Attempt == 1 {
				return simplequeue.RetryAfter(10*time.Millisecond, errors.New("locked"))
			}
			fmt.Println("entry", entry)
			return nil
		})},
	})
	ctx := context.Background()
	in, err := q.InsertMany(ctx, []simplequeue.NewJob{
		{Queue: "ledger", Payload: 1, Priority: 9}, {Queue: "ledger", Payload: 2}, {Queue: "ledger", Payload: 3},
	})
	if err != nil {
		panic(err)
	}
	start(&t, q)
	if _, err := q.Wait(ctx, in[2].ID); err != nil {
		fmt.Println(err)
	}
	// Output:
	// entry 1
	// entry 2
	// entry 3
}

// A job is inserted, has its place, and runs only if it is committed.
func ExampleSimpleQueue_CommitHeld() {
	q, closing := exampleQueue()
	defer closing()
	ctx := context.Background()
	in, err := q.Insert(ctx, simplequeue.NewJob{Queue: "transfers", Hold: time.Hour})
	if err != nil {
		panic(err)
	}
	show := func() {
		job, err := q.Get(ctx, in.ID)
		fmt.Println(job.State, job.Reason, err)
	}
	show()
	for range 2 {
		done, err := q.CommitHeld(ctx, in.ID)
		fmt.Println(len(done), "committed", err)
	}
	show()
	// Output:
	// waiting held <nil>
	// 1 committed <nil>
	// 0 committed <nil>
	// pending  <nil>
}

// The backlog of one tenant does not delay another.
func ExampleSimpleQueue_SetFairWeight() {
	var t exampleTB
	defer t.cleanup()
	var ran []string
	q := newQueue(&t, pgtest.New(&t), handler("reports", func(_ context.Context, job *simplequeue.Job) error {
		ran = append(ran, job.FairnessKey)
		return nil
	}))
	ctx := context.Background()
	if err := q.SetFairWeight(ctx, "reports", "small", 3); err != nil {
		panic(err)
	}
	jobs := make([]simplequeue.NewJob, 250)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "reports", FairnessKey: "big"}
	}
	if _, err := q.InsertMany(ctx, jobs); err != nil {
		panic(err)
	}
	if _, err := q.Insert(ctx, simplequeue.NewJob{Queue: "reports", FairnessKey: "small"}); err != nil {
		panic(err)
	}
	simplequeuetest.Work(&t, q) // what workers do, one job at a time
	fmt.Println(len(ran), "have run, the small one was among the first 201:", slices.Index(ran, "small") < 201)
	// Output: 251 have run, the small one was among the first 201: true
}

// While both queues have more to do than there are permits, three of four are of
// the one with three times the weight.
func ExampleQueueOptions_weight() {
	var t exampleTB
	defer t.cleanup()
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{
		GlobalPermits: 4, Queues: map[string]simplequeue.QueueOptions{"checkout": {Weight: 3}},
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("*", func(ctx context.Context, _ *simplequeue.Job) error {
			<-ctx.Done()
			return ctx.Err()
		})},
		Stop: simplequeue.StopTimeouts{Drain: -1},
	})
	for range 10 {
		if _, err := q.InsertMany(context.Background(), []simplequeue.NewJob{{Queue: "checkout"}, {Queue: "reports"}}); err != nil {
			panic(err)
		}
	}
	start(&t, q)
	running := func(queue string) int { return q.Stats().Queues[queue].Running }
	eventually(&t, "all permits are taken", func() bool { return running("checkout")+running("reports") == 4 })
	fmt.Println(running("checkout"), running("reports"))
	// Output: 3 1
}
