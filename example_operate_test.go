package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// exampleQueue is a queue on a database of its own.
func exampleQueue() (q *simplequeue.SimpleQueue, closing func()) {
	t := &exampleTB{}
	return newQueue(t, pgtest.New(t), simplequeue.Options{}), t.cleanup
}

func ExampleSimpleQueue_Page() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	for i := range 5 {
		job := simplequeue.NewJob{Queue: "mails", Payload: i, Metadata: map[string]string{"customer": "7"}}
		if _, err := q.Insert(ctx, job); err != nil {
			fmt.Println(err)
		}
	}
	f := simplequeue.Filter{Metadata: map[string]string{"customer": "7"}, Newest: true, Limit: 3}
	for cursor := ""; ; {
		page, err := q.Page(ctx, f, cursor)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, job := range page.Jobs {
			fmt.Print(string(job.Payload), ";")
		}
		fmt.Println()
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	// Output:
	// 4;3;2;
	// 1;0;
}

func ExampleSimpleQueue_Why() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	job, err := q.Insert(ctx, simplequeue.NewJob{Queue: "mails"})
	if err != nil {
		fmt.Println(err)
		return
	}
	holds, err := q.Why(ctx, job.ID)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, h := range holds {
		fmt.Printf("%s: %s\n", h.Code, h.Text)
	}
	// Output: no_worker: No live worker serves queue "mails".
}

func ExampleSimpleQueue_Change() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	job, err := q.Insert(ctx, simplequeue.NewJob{Queue: "mails", Payload: "draft", Delay: time.Hour})
	if err != nil {
		fmt.Println(err)
		return
	}
	urgent := 0
	err = q.Change(ctx, job.ID, simplequeue.Change{Payload: "final", Priority: &urgent, RunAt: time.Unix(0, 0)})
	if err != nil {
		fmt.Println(err)
		return
	}
	info, err := q.Get(ctx, job.ID)
	fmt.Println(info.State, string(info.Payload), err)
	// Output: pending "final" <nil>
}

func ExampleSimpleQueue_Claim() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	job, err := q.Insert(ctx, simplequeue.NewJob{Queue: "mails", Payload: "hello"})
	if err != nil {
		fmt.Println(err)
		return
	}
	leases, err := q.Claim(ctx, "mails", 10, time.Minute)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, l := range leases {
		fmt.Println("working on", string(l.Job.Payload))
		if err := l.Extend(ctx); err != nil { // long work needs this every now and then
			fmt.Println(err)
		}
		if err := l.Settle(ctx, nil); err != nil {
			fmt.Println(err)
		}
		fmt.Println("settled twice:", errors.Is(l.Settle(ctx, nil), simplequeue.ErrLeaseLost))
	}
	info, err := q.Get(ctx, job.ID)
	fmt.Println(info.State, err)
	// Output:
	// working on "hello"
	// settled twice: true
	// completed <nil>
}

func ExampleSimpleQueue_Redrive() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	job, err := q.Insert(ctx, simplequeue.NewJob{Queue: "mails"})
	if err != nil {
		fmt.Println(err)
		return
	}
	state, err := q.CancelAndWait(ctx, job.ID, "by mistake")
	fmt.Println(state, err)
	done, err := q.Redrive(ctx, simplequeue.Filter{IDs: []uuid.UUID{job.ID}}, simplequeue.RedriveOptions{})
	fmt.Println(len(done.IDs), done.Conflicts, err)
	info, err := q.Get(ctx, job.ID)
	fmt.Println(info.State, info.Redrives, err)
	// Output:
	// cancelled <nil>
	// 1 0 <nil>
	// pending 1 <nil>
}

func ExampleSimpleQueue_Count() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	if _, err := q.InsertMany(ctx, []simplequeue.NewJob{
		{Queue: "mails", Fingerprint: "ada"}, {Queue: "mails", Fingerprint: "ada", Delay: time.Hour}, {Queue: "mails"},
	}); err != nil {
		fmt.Println(err)
		return
	}
	counts, err := q.Count(ctx, simplequeue.Filter{Queue: "mails"})
	fmt.Println(counts, err)
	list, err := q.List(ctx, simplequeue.Filter{Fingerprint: "ada"})
	for _, job := range list {
		fmt.Printf("%s %q\n", job.State, job.Reason)
	}
	fmt.Println(err)
	// Output:
	// map[pending:2 waiting:1] <nil>
	// pending ""
	// waiting "scheduled"
	// <nil>
}

func ExampleSimpleQueue_Pause() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	if _, err := q.Insert(ctx, simplequeue.NewJob{Queue: "mails"}); err != nil {
		fmt.Println(err)
		return
	}
	// Drain is Pause that waits for the jobs that run.
	if err := q.Drain(ctx, "mails", "the mail server moves"); err != nil {
		fmt.Println(err)
		return
	}
	claimed := func() {
		leases, err := q.Claim(ctx, "mails", 10, time.Minute)
		fmt.Println(len(leases), "claimed", err)
	}
	claimed()
	queues, err := q.Queues(ctx)
	fmt.Println(queues[0].Name, queues[0].Paused, queues[0].PauseReason, err)
	if err := q.Resume(ctx, "mails"); err != nil {
		fmt.Println(err)
	}
	claimed()
	// Output:
	// 0 claimed <nil>
	// mails true the mail server moves <nil>
	// 1 claimed <nil>
}

// The handler is told why its context has ended.
func ExampleSimpleQueue_CancelAndWait() {
	var t exampleTB
	defer t.cleanup()
	ctx, running := context.Background(), make(chan struct{})
	q := newQueue(&t, pgtest.New(&t), handler("videos", func(ctx context.Context, _ *simplequeue.Job) error {
		close(running)
		<-ctx.Done()
		fmt.Println(context.Cause(ctx))
		return ctx.Err()
	}))
	start(&t, q)
	job, err := q.Insert(ctx, simplequeue.NewJob{Queue: "videos"})
	if err != nil {
		fmt.Println(err)
		return
	}
	<-running
	state, err := q.CancelAndWait(ctx, job.ID, "uploaded by mistake")
	fmt.Println(state, err)
	// Output:
	// simplequeue: job cancelled: uploaded by mistake
	// cancelled <nil>
}

// A completed job is run again as a copy, and deleted.
func ExampleSimpleQueue_Replay() {
	var t exampleTB
	defer t.cleanup()
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.Typed("mails", func(_ context.Context, _ *simplequeue.Job, mail string) error {
			fmt.Println("sending", mail)
			return nil
		}),
	}})
	start(&t, q)
	ctx := context.Background()
	job, err := q.InsertAndWait(ctx, simplequeue.NewJob{Queue: "mails", Payload: "newsletter"})
	if err != nil {
		fmt.Println(err)
		return
	}
	done, err := q.Replay(ctx, simplequeue.Filter{IDs: []uuid.UUID{job.ID}}, simplequeue.RedriveOptions{Rate: 100})
	if err != nil || len(done.IDs) != 1 {
		fmt.Println(done, err)
		return
	}
	copied, err := q.Wait(ctx, done.IDs[0])
	fmt.Println(copied.State, copied.ReplayOf == job.ID, err)
	n, err := q.Purge(ctx, simplequeue.Filter{IDs: []uuid.UUID{job.ID}})
	fmt.Println(n, "purged", err)
	// Output:
	// sending newsletter
	// sending newsletter
	// completed true <nil>
	// 1 purged <nil>
}

// Nothing is kept of a job that completes, and a year of one that does not.
func ExampleRetention() {
	ctx := context.Background()
	q, closing := exampleQueue()
	defer closing()
	job, err := q.Insert(ctx, simplequeue.NewJob{Queue: "mails", Retention: simplequeue.Retention{
		Archive: simplequeue.KeepNothing, DeadLetter: 365 * 24 * time.Hour,
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	leases, err := q.Claim(ctx, "mails", 1, time.Minute)
	if err != nil || len(leases) != 1 {
		fmt.Println(leases, err)
		return
	}
	fmt.Println(leases[0].Settle(ctx, nil))
	_, err = q.Get(ctx, job.ID)
	fmt.Println(errors.Is(err, simplequeue.ErrNotFound))
	// Output:
	// <nil>
	// true
}
