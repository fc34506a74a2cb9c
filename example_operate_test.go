package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// operatorTB lends the helpers of the tests to examples.
type operatorTB struct {
	testing.TB
	cleanups []func()
}

func (*operatorTB) Helper()                           {}
func (t *operatorTB) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }
func (*operatorTB) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*operatorTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// exampleQueue is a queue on a database of its own.
func exampleQueue() (q *simplequeue.SimpleQueue, closing func()) {
	t := &operatorTB{}
	return newQueue(t, pgtest.New(t), simplequeue.Options{}), func() {
		for i := len(t.cleanups) - 1; i >= 0; i-- {
			t.cleanups[i]()
		}
	}
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
	done, err := q.Redrive(ctx, simplequeue.Filter{IDs: []uuid.UUID{job.ID}}, simplequeue.Redrive{})
	fmt.Println(len(done.IDs), done.Conflicts, err)
	info, err := q.Get(ctx, job.ID)
	fmt.Println(info.State, info.Redrives, err)
	// Output:
	// cancelled <nil>
	// 1 0 <nil>
	// pending 1 <nil>
}
