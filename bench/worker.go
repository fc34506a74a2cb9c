package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

var errPlanned = errors.New("fails as planned")

// newWork is what every handler of every contestant does.
func newWork(s Setup, note func(attempt)) Work {
	return func(ctx context.Context, p Payload, number int) error {
		note(attempt{N: p.N, Number: number, At: time.Now().UnixNano(), Damaged: !p.intact(s.Bytes)})
		if s.Hold > 0 {
			if err := wait(ctx, s.Hold); err != nil {
				return err
			}
		}
		if fails(p.N, number, s.Fail) {
			return errPlanned
		}
		return nil
	}
}

// withWorkers runs body while the workers run, in this process or in processes
// of their own.
func (t *trial) withWorkers(ctx context.Context, body func(ctx context.Context) error) error {
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stopped := make(chan error, 1)
	go func() {
		err := t.runWorkers(working)
		stop(errors.New("the workers stopped by themselves"))
		stopped <- err
	}()
	err := body(working)
	stop(nil)
	if e := <-stopped; e != nil && ctx.Err() == nil {
		err = errors.Join(err, fmt.Errorf("workers: %w", e))
	}
	return err
}

func (t *trial) runWorkers(ctx context.Context) error {
	if t.setup.Processes == 0 {
		err := t.contestant.Run(ctx, newWork(t.setup, t.ledger.note))
		if c, ok := t.contestant.(counting); ok {
			t.addCounters(c.Counters())
		}
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for range t.setup.Processes {
		g.Go(func() error { return t.runProcess(ctx) })
	}
	return g.Wait()
}

// alongside runs tasks, which return nil when their context ends, for as long as
// body takes. The first error ends all.
func alongside(ctx context.Context, body func(ctx context.Context) error, tasks ...func(ctx context.Context) error) error {
	inner, stop := context.WithCancel(ctx)
	defer stop()
	g, inner := errgroup.WithContext(inner)
	for _, task := range tasks {
		g.Go(func() error { return task(inner) })
	}
	g.Go(func() error {
		defer stop()
		return body(inner)
	})
	err := g.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// wait returns early, with the reason, when ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// every calls f once an interval until ctx ends, which is no error. Calls that
// are late are made up for.
func every(ctx context.Context, interval time.Duration, f func(i int) error) error {
	begin := time.Now()
	for i := 0; ; i++ {
		if wait(ctx, time.Until(begin.Add(time.Duration(i)*interval))) != nil {
			return nil
		}
		if err := f(i); err != nil {
			return err
		}
	}
}
