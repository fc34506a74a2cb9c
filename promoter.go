package simplequeue

import (
	"context"
	"log/slog"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// promoter moves jobs that have become due into the queue. Several processes
// may do it at once: each takes rows that no other has locked.
type promoter struct {
	db interface {
		Promote(ctx context.Context, limit time.Duration, most int) (int, map[store.Lane]bool, time.Duration, error)
	}
	every  time.Duration
	soon   chan time.Duration // size 1: a job has become due in so long
	wake   func(lanes []store.Lane, jobs int)
	log    *slog.Logger
	health *loopHealth
}

const (
	promoteBatch = 1000
	promoteLimit = 10 * time.Second
)

// hint tells the promoter of a job that is due in d.
func (p *promoter) hint(d time.Duration) {
	for {
		select {
		case p.soon <- d:
			return
		case other := <-p.soon: // not yet seen by the promoter
			d = min(d, other)
		}
	}
}

func (p *promoter) run(ctx context.Context) {
	retry := newRetry()
	for ctx.Err() == nil {
		moved, into, next, err := p.db.Promote(ctx, promoteLimit, promoteBatch)
		if ctx.Err() != nil {
			return
		}
		p.health.report(err)
		if err != nil {
			if retry.count == 0 {
				p.log.WarnContext(ctx, "promotion of due jobs failed, trying again", "err", err)
			}
			if retry.wait(ctx) != nil {
				return
			}
			continue
		}
		retry.reset()
		if moved > 0 {
			lanes := make([]store.Lane, 0, len(into))
			for l := range into {
				lanes = append(lanes, l)
			}
			p.wake(lanes, moved)
		}
		if moved == promoteBatch {
			continue
		}
		p.rest(ctx, min(next, jittered(p.every)))
	}
}

// rest waits until a job is due, as far as is known here.
func (p *promoter) rest(ctx context.Context, d time.Duration) {
	until := time.Now().Add(max(d, time.Millisecond))
	for {
		t := time.NewTimer(time.Until(until))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			return
		case d := <-p.soon:
			t.Stop()
			if at := time.Now().Add(d); at.Before(until) {
				until = at
			}
		}
	}
}
