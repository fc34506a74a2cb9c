package main

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// work runs q until the contact sheet, the last job, has ended.
func work(ctx context.Context, q *simplequeue.SimpleQueue, sheet uuid.UUID, p *progress) error {
	total, err := liveThumbnails(ctx, q)
	if err != nil {
		return err
	}
	working, done := context.WithCancel(ctx)
	defer done()
	watched := make(chan error, 1)
	go func() {
		watched <- watch(working, q, sheet, total, p)
		done()
	}()
	err = q.Run(working)
	done()
	if watchErr := <-watched; err == nil {
		err = watchErr
	}
	return err
}

// watch shows the progress until the contact sheet has ended.
func watch(ctx context.Context, q *simplequeue.SimpleQueue, sheet uuid.UUID, total int64, p *progress) error {
	defer p.end()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		live, err := liveThumbnails(ctx, q)
		if err != nil {
			return err
		}
		p.show(total-live, total)
		job, err := q.Get(ctx, sheet)
		if err != nil {
			return err
		}
		if job.State.Terminal() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// liveThumbnails counts the thumbnails that are not done, broken or given up.
func liveThumbnails(ctx context.Context, q *simplequeue.SimpleQueue) (int64, error) {
	states, err := q.Count(ctx, simplequeue.Filter{Queue: thumbnails, States: []simplequeue.State{
		simplequeue.StateWaiting, simplequeue.StatePending, simplequeue.StateRunning, simplequeue.StateCancelling,
	}})
	if err != nil {
		return 0, err
	}
	var n int64
	for _, ofState := range states {
		n += ofState
	}
	return n, nil
}
