package simplequeue

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Priority aging: the lanes of a queue are claimed from in the order of their
// first jobs, each as if it had entered later by its priority times the queue's
// Aging. No job is written for that: the order of the lanes in a claim is all
// that changes.

const (
	headsEvery    = time.Second
	headsOften    = 50 * time.Millisecond
	maxEntryNotes = 256
)

// entryBook tells when rows entered the queue, by this process's clock. A row
// knows when its job was inserted, which is earlier than that for a job that has
// waited; the last place given out at some moments bounds it.
type entryBook struct {
	seqs   []int64 // ascending
	at     []time.Time
	offset time.Duration // of this process's clock to the database's
}

// note takes down that no row above seq has entered yet.
func (e *entryBook) note(seq int64, now time.Time) {
	n := len(e.seqs)
	if n > 0 && seq <= e.seqs[n-1] {
		e.at[n-1] = now
		return
	}
	e.seqs, e.at = append(e.seqs, seq), append(e.at, now)
	if n+1 <= maxEntryNotes {
		return
	}
	// The longer ago, the less exactly: one goes whose neighbours are near each
	// other, for their age.
	least, place := math.Inf(1), 1
	for i := 1; i < n; i++ {
		if gap := float64(e.at[i+1].Sub(e.at[i-1])) / float64(now.Sub(e.at[i-1])); gap < least {
			least, place = gap, i
		}
	}
	e.seqs, e.at = slices.Delete(e.seqs, place, place+1), slices.Delete(e.at, place, place+1)
}

// entered is when a row entered, as near as is known.
func (e *entryBook) entered(seq int64, created, now time.Time) time.Time {
	at := created.Add(e.offset)
	i := sort.Search(len(e.seqs), func(i int) bool { return e.seqs[i] >= seq })
	if i > 0 && at.Before(e.at[i-1]) {
		at = e.at[i-1]
	}
	if at.After(now) {
		at = now
	}
	return at
}

// ordered are the lanes of the queue in the order in which to claim from them.
func (b *laneBook) ordered(q *queueLanes, now time.Time) []*lane {
	if q.route.aging <= 0 || len(q.lanes) < 2 {
		return q.lanes
	}
	due := func(l *lane) time.Time {
		since := now
		if !l.since.IsZero() {
			since = l.since
		}
		return since.Add(time.Duration(l.lane) * q.route.aging)
	}
	list := slices.Clone(q.lanes)
	slices.SortStableFunc(list, func(x, y *lane) int { return cmp.Or(due(x).Compare(due(y)), cmp.Compare(x.lane, y.lane)) })
	highest := int16(10) // priority of the lanes with jobs that come after
	for _, l := range slices.Backward(list) {
		l.risen = l.lane > highest
		if l.active {
			highest = min(highest, l.lane)
		}
	}
	return list
}

// grow notes that a job was claimed from the lane: those behind it entered
// later.
func (b *laneBook) grow(l *lane, job *store.Claimed, now time.Time) {
	if at := b.entries.entered(job.Seq, job.CreatedAt, now); at.After(l.since) {
		l.since = at
	}
	if l.risen {
		b.risen++
	}
}

// agingLanes are the lanes whose first jobs have to be known, and how often.
func (b *laneBook) agingLanes() (lanes []*lane, names []store.Lane, every time.Duration) {
	every = headsEvery
	for _, q := range b.queues {
		if q.route.aging <= 0 || len(q.lanes) < 2 {
			continue
		}
		every = min(every, max(q.route.aging/4, headsOften))
		for _, l := range q.lanes {
			lanes, names = append(lanes, l), append(names, store.Lane{Queue: q.route.name, Priority: l.lane})
		}
	}
	return lanes, names, every
}

// readHeads looks how long the first jobs of the lanes have been there. Without
// aging there is nothing to look at.
func (p *poller) readHeads(ctx context.Context) error {
	if !p.routes.ages {
		return nil
	}
	lanes, names, every := p.book.agingLanes()
	now := time.Now()
	if len(lanes) == 0 || now.Sub(p.headsAt) < p.book.notSooner(every) {
		return nil
	}
	heads, err := p.db.Heads(ctx, claimLimit, names)
	if err != nil {
		return fmt.Errorf("look at the first jobs of lanes: %w", err)
	}
	p.headsAt = time.Now()
	p.book.learnHeads(lanes, heads, now)
	return nil
}

// learnHeads notes what the first jobs of lanes are, as asked for at now.
func (b *laneBook) learnHeads(lanes []*lane, heads store.Heads, now time.Time) {
	b.entries.offset = now.Sub(heads.Now)
	b.entries.note(heads.LastSeq, now)
	for i, l := range lanes {
		l.since = time.Time{}
		if h := heads.First[i]; h != nil {
			l.since = b.entries.entered(h.Seq, h.CreatedAt, now)
		}
	}
}
