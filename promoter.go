package simplequeue

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// promoter moves jobs that have become due into the queue. Several processes
// may do it at once: each takes rows that no other has locked.
type promoter struct {
	db interface {
		Promote(ctx context.Context, limit time.Duration, from *int64, most int) (store.Promotion, error)
	}
	mark   dueMark
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

// dueMark is the time before which the promoter has left nothing, as far as it
// could see. It trails the clock, because a job may be committed after its time
// has come; what comes later still is found by a look at all, made as rarely as
// those of the lanes are.
type dueMark struct {
	value    int64 // microseconds since 1970
	fullAt   time.Time
	fullCost time.Duration
	behind   bool // the last look did not come to the end
}

// from is where to begin, nil for all.
func (m *dueMark) from(now time.Time) *int64 {
	if !m.behind && now.Sub(m.fullAt) >= max(fullEvery, min(fullShare*m.fullCost, fullMost)) {
		return nil
	}
	return &m.value
}

func (m *dueMark) moved(done store.Promotion, full bool, asked time.Time, took time.Duration) {
	if full {
		m.fullAt, m.fullCost = asked, max(0, took-time.Duration(done.Moved)*aJob)
	}
	m.behind = done.Moved == promoteBatch
	if m.value = done.Now - trail.Microseconds(); m.behind {
		m.value = done.Last
	}
}

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
		asked := time.Now()
		from := p.mark.from(asked)
		done, err := p.db.Promote(ctx, promoteLimit, from, promoteBatch)
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
		p.mark.moved(done, from == nil, asked, time.Since(asked))
		if done.Moved > 0 {
			p.wake(slices.Collect(maps.Keys(done.Into)), done.Moved)
		}
		if done.Moved == promoteBatch {
			continue
		}
		p.rest(ctx, min(done.Next, jittered(p.every)))
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
