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

// A handler gets several jobs at once and says what becomes of each.
func ExampleBatch() {
	var t exampleTB
	defer t.cleanup()
	mails := simplequeue.Batch("mails", 3, 30*time.Second, func(_ context.Context, jobs []*simplequeue.Job) error {
		fmt.Println("a batch of", len(jobs))
		errs := make(simplequeue.BatchErrors, len(jobs))
		for i, job := range jobs {
			if job.Kind == "to nobody" {
				errs[i] = simplequeue.Cancel(errors.New("nobody wants it"))
			}
		}
		return errs
	})
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{Handlers: []simplequeue.Handler{mails}, Logger: slog.New(slog.DiscardHandler)})
	stop := start(&t, q)
	defer func() { _ = stop() }()

	ctx := context.Background()
	jobs, err := q.InsertMany(ctx, []simplequeue.NewJob{
		{Queue: "mails", Kind: "to Ada"},
		{Queue: "mails", Kind: "to nobody"},
		{Queue: "mails", Kind: "to Grace"},
	})
	if err != nil {
		panic(err)
	}
	for _, job := range jobs {
		info := awaitEnd(&t, q, job.ID)
		fmt.Println(info.Kind, "is", info.State)
	}
	// Output:
	// a batch of 3
	// to Ada is completed
	// to nobody is cancelled
	// to Grace is completed
}
