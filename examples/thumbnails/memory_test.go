package main

import (
	"context"
	"image"
	"path/filepath"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// The images decoded at one time stay within the budget, and a job that has to
// wait for it long uses up no attempt.
func TestMemoryBudget(t *testing.T) {
	p := newProgram(t)
	p.pool = pgtest.New(t)
	const images, atOnce = 9, 2
	need := memoryFor(image.Config{Width: 100, Height: 100})

	entered := make(chan struct{}, images)
	leave := make(chan struct{})
	slow := simplequeue.HandlerFunc(thumbnails, func(ctx context.Context, _ *simplequeue.Job) error {
		entered <- struct{}{}
		select {
		case <-leave:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	q, err := simplequeue.New(p.pool, simplequeue.Options{
		Handlers:   []simplequeue.Handler{boundMemory(slow, need*atOnce+need/2)},
		PermitWait: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.write("image.png", encoded(t, "png", 100, 100))
	for range images {
		if _, err := q.Insert(t.Context(), simplequeue.NewJob{
			Queue: thumbnails, Payload: thumbnailJob{Source: filepath.Join(p.folder, "image.png")},
		}); err != nil {
			t.Fatal(err)
		}
	}
	working, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- q.Run(working) }()

	for range atOnce {
		receive(t, entered)
	}
	select {
	case <-entered:
		t.Fatalf("more than %d images at once", atOnce)
	case <-time.After(300 * time.Millisecond): // the others are given back a few times
	}
	for range images - atOnce {
		leave <- struct{}{}
		receive(t, entered)
	}
	close(leave)
	waitFor(t, func() bool { return len(p.list(doneSQL)) == images })
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if got := p.list(`SELECT DISTINCT attempt::text FROM simplequeue.job`); len(got) != 1 || got[0] != "1" {
		t.Errorf("the jobs took %v attempts, want 1 each", got)
	}
}
