package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Scenario does something with a prepared contestant, and measures the part of
// it that counts.
type Scenario func(ctx context.Context, t *trial) error

var scenarios = map[string]Scenario{
	"drain":  drain,
	"insert": insert,
}

// drain: a backlog is there; from the start of the workers until the last job is
// settled.
func drain(ctx context.Context, t *trial) error {
	if err := t.insertAll(ctx); err != nil {
		return err
	}
	if err := t.vacuum(ctx); err != nil {
		return err
	}
	return t.measure(ctx, func() error { return t.runAll(ctx) })
}

// insert: one caller inserts all jobs in bulk. That they run is checked, not
// measured.
func insert(ctx context.Context, t *trial) error {
	if err := t.measure(ctx, func() error { return t.insertAll(ctx) }); err != nil {
		return err
	}
	return t.runAll(ctx)
}

func (t *trial) insertAll(ctx context.Context) error {
	for jobs := range slices.Chunk(t.payloads, t.call) {
		if err := t.contestant.Insert(ctx, jobs); err != nil {
			return fmt.Errorf("insert: %w", err)
		}
	}
	return nil
}

// runAll works until every job has run and is settled, and checks that each ran
// exactly once.
func (t *trial) runAll(ctx context.Context) error {
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	once := newOnce(t.jobs)
	stopped := make(chan error, 1)
	go func() {
		err := t.contestant.Run(working, once.mark)
		stop(errors.New("the workers stopped by themselves"))
		stopped <- err
	}()
	err := t.awaitSettled(working, once)
	t.done() // stopping is not measured
	stop(nil)
	if e := <-stopped; e != nil && ctx.Err() == nil {
		err = errors.Join(err, fmt.Errorf("run: %w", e))
	}
	return errors.Join(err, once.check())
}

// awaitSettled asks the database only when all handlers have been called.
func (t *trial) awaitSettled(ctx context.Context, once *once) error {
	select {
	case <-once.all:
	case <-ctx.Done():
		return fmt.Errorf("after %d of %d jobs: %w", once.ran.Load(), t.jobs, context.Cause(ctx))
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		settled, err := t.contestant.Settled(ctx)
		if err != nil {
			return fmt.Errorf("settled: %w", err)
		}
		if settled {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// once checks that each of n jobs runs exactly once.
type once struct {
	bits    []atomic.Uint64
	n       int64
	ran     atomic.Int64
	again   atomic.Int64
	unknown atomic.Int64
	all     chan struct{} // closed when the last job has run
}

func newOnce(n int) *once {
	return &once{bits: make([]atomic.Uint64, (n+63)/64), n: int64(n), all: make(chan struct{})}
}

func (o *once) mark(p Payload) {
	if p.N < 0 || int64(p.N) >= o.n {
		o.unknown.Add(1)
		return
	}
	bit := uint64(1) << (p.N % 64)
	if o.bits[p.N/64].Or(bit)&bit != 0 {
		o.again.Add(1)
		return
	}
	if o.ran.Add(1) == o.n {
		close(o.all)
	}
}

func (o *once) check() error {
	if ran, again, unknown := o.ran.Load(), o.again.Load(), o.unknown.Load(); ran != o.n || again+unknown > 0 {
		return fmt.Errorf("not exactly once: of %d jobs %d ran, %d runs were repeats, %d had no job", o.n, ran, again, unknown)
	}
	return nil
}
