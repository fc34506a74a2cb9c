package simplequeue

import (
	"math"
	"slices"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// laneBook is what the poller knows of the lanes it may claim from. It belongs
// to the poller's goroutine.
type laneBook struct {
	routes *routes
	every  time.Duration // how often a quiet queue is looked at
	queues []*queueLanes
	byName map[string]*queueLanes
	next   int // where the next claim starts, so that no queue is always first

	suspectBusy bool // a suspect runs here, or may; there is at most one

	fullCost time.Duration // what the last read without watermark took

	portions []portion // of the claim that is being made
	entries  entryBook
	risen    int64 // jobs claimed before some of higher priority, for their age
}

// queueLanes are the lanes of one queue.
type queueLanes struct {
	route   *queueRoute
	front   lane
	suspect lane
	lanes   []*lane   // by priority
	probeAt time.Time // when all lanes are looked at next, wake-up or not
	idle    bool      // it had less than it was asked for the last time
}

// lane is one priority of a queue.
type lane struct {
	lane   int16
	active bool      // may hold jobs
	short  bool      // the last claim above the watermark found too little
	fullAt time.Time // last claim without a watermark that came as far as this lane
	asked  time.Time // last claim without one
	mark   watermark
	since  time.Time // when its first job entered, zero for just now or not known; with aging only
	risen  bool      // in the claim that is being made it comes before one of higher priority

	highest int64 // place of a job that the claim that is being noted has found
}

const (
	trail     = 250 * time.Millisecond
	fullEvery = 2 * time.Second        // a busy lane is read without watermark
	fullAgain = 100 * time.Millisecond // and so is one that has run short
	fullShare = 20                     // but takes no more than one part in so many of the time
	fullMost  = 4 * time.Second        // unless that would make it as rare as this
	maxProbes = 1000                   // lanes in one claim
	maxClaim  = 1000                   // jobs in one claim
)

// watermark is the place in a lane below which this process has claimed all it
// has seen. It trails: concurrent inserts commit out of order, so what was
// claimed just now says little about what is still to appear before it.
type watermark struct {
	value  int64 // claimed at least trail ago
	middle int64 // claimed by middleAt
	at     time.Time
	newest int64
	below  int // so many reads in a row have found nothing from value on
}

// setBack is after how many reads in a row that found something, but nothing
// above the watermark, the numbers have been set back, by a failover or a
// restore. Late commits alone hardly come so often with nothing between them.
const setBack = 3

// observe takes note of the highest place that a read has found.
func (w *watermark) observe(seq int64) {
	if w.below++; seq >= w.value {
		w.below = 0
	}
	if w.below == setBack {
		*w = watermark{}
	}
	w.newest = max(w.newest, seq)
}

func (w *watermark) after(now time.Time) int64 {
	if now.Sub(w.at) >= trail {
		w.value, w.middle, w.at = w.middle, w.newest, now
	}
	return w.value
}

func newLaneBook(r *routes, every time.Duration) *laneBook {
	return &laneBook{routes: r, every: every, byName: map[string]*queueLanes{}}
}

// add makes a lane known; it may hold jobs.
func (b *laneBook) add(l store.Lane) {
	q := b.byName[l.Queue]
	if q == nil {
		route := b.routes.find(l.Queue)
		if route == nil {
			return
		}
		q = &queueLanes{route: route, front: lane{lane: store.FrontLane}, suspect: lane{lane: store.SuspectLane}}
		b.byName[l.Queue] = q
		b.queues = append(b.queues, q)
	}
	switch l.Priority {
	case store.FrontLane:
		q.front.active = true
	case store.SuspectLane:
		q.suspect.active = true
	default:
		i, found := slices.BinarySearchFunc(q.lanes, l.Priority, func(x *lane, p int16) int { return int(x.lane) - int(p) })
		if !found {
			q.lanes = slices.Insert(q.lanes, i, &lane{lane: l.Priority})
		}
		// Short of jobs below or above its watermark, the lane has some now.
		q.lanes[i].active, q.lanes[i].short = true, false
	}
}

// knows reports whether a lane is in the book, or is nothing to this process.
func (b *laneBook) knows(l store.Lane) bool {
	q := b.byName[l.Queue]
	if q == nil {
		return b.routes.find(l.Queue) == nil
	}
	return slices.ContainsFunc(q.lanes, func(x *lane) bool { return x.lane == l.Priority })
}

// addAll makes every known lane worth a look.
func (b *laneBook) addAll() {
	for _, q := range b.queues {
		q.probeAt = time.Time{}
	}
}

// addQueue makes every known lane of a queue worth a look.
func (b *laneBook) addQueue(name string) {
	if q := b.byName[name]; q != nil {
		q.probeAt = time.Time{}
	}
}

// dueIn is how long until some lane is worth a look; 0 means now.
func (b *laneBook) dueIn(now time.Time) time.Duration {
	wait := b.every
	for _, q := range b.queues {
		if q.route.budget() == 0 {
			continue
		}
		wait = min(wait, b.queueDueIn(q, now))
		if wait <= 0 {
			return 0
		}
	}
	return wait
}

func (b *laneBook) queueDueIn(q *queueLanes, now time.Time) time.Duration {
	if q.front.active || q.suspect.active && !b.suspectBusy {
		return 0
	}
	wait := q.probeAt.Sub(now)
	for _, l := range q.lanes {
		if l.active {
			wait = min(wait, b.laneDueIn(l, now))
		}
	}
	return wait
}

// laneDueIn: a lane that ran short above its watermark is read once more from
// its start, for what committed late, but not at once again.
func (b *laneBook) laneDueIn(l *lane, now time.Time) time.Duration {
	if l.short {
		return l.fullAt.Add(b.notSooner(fullAgain)).Sub(now)
	}
	return 0
}

// notSooner is how long to wait between reads without watermark, at least d.
// They walk over the dead entries that a long transaction keeps vacuum from
// removing: the more there are, the rarer these reads become.
func (b *laneBook) notSooner(d time.Duration) time.Duration {
	return max(d, min(fullShare*b.fullCost, fullMost))
}

// probe is one lane in a claim.
type probe struct {
	queue *queueLanes
	lane  *lane
	after int64
}

// group is the lanes of a claim that share a budget.
type group struct {
	first, last int // in the request's lanes, half open
	budget      int
	queue       *queueLanes // nil for the suspects' group
	all         bool        // all lanes, because it is time
}

// request is a claim to be made.
type request struct {
	groups []group
	probes []probe
	limit  int
	now    time.Time
	chunk  int64 // the first of the two chunks that the lanes are read in, or store.AllChunks
}

// request chooses the lanes of the next claim of at most limit jobs: of each
// queue with free permits the front lane and the lanes that may hold jobs, all
// lanes once an interval.
func (b *laneBook) request(now time.Time, limit int) request {
	r := request{limit: limit, now: now}
	if len(b.queues) == 0 {
		return r
	}
	b.next = (b.next + 1) % len(b.queues)
	var suspects []probe
	for i := range b.queues {
		if len(r.probes) >= maxProbes {
			break
		}
		q := b.queues[(b.next+i)%len(b.queues)]
		budget := min(q.route.budget(), limit)
		if budget == 0 || b.queueDueIn(q, now) > 0 {
			continue
		}
		all := !now.Before(q.probeAt)
		if !b.suspectBusy && (all || q.suspect.active) {
			// One permit of the queue is for the suspect, should there be one.
			// With only one left, they take turns.
			room := q.route.budget()
			if room > 1 || q.suspect.active {
				suspects = append(suspects, probe{queue: q, lane: &q.suspect})
			}
			if room == 1 && q.suspect.active {
				continue
			}
			q.suspect.active = q.suspect.active || room == 1
			budget = min(max(room-1, 1), limit)
		}
		if all {
			q.probeAt = now.Add(b.notSooner(jittered(b.every)))
		}
		g := group{first: len(r.probes), budget: budget, queue: q, all: all}
		if all || q.front.active {
			r.probes = append(r.probes, probe{queue: q, lane: &q.front})
		}
		for _, l := range b.ordered(q, now) {
			if all || l.active && b.laneDueIn(l, now) <= 0 {
				r.probes = append(r.probes, probe{queue: q, lane: l, after: b.start(l, now)})
			}
		}
		if g.last = len(r.probes); g.last > g.first {
			r.groups = append(r.groups, g)
		}
	}
	if len(suspects) > 0 {
		g := group{first: len(r.probes), budget: 1}
		r.probes = append(r.probes, suspects...)
		g.last = len(r.probes)
		r.groups = append([]group{g}, r.groups...)
	}
	b.share(&r)
	r.chunk = r.chunkOf()
	return r
}

// start is where the next claim of the lane starts.
func (b *laneBook) start(l *lane, now time.Time) int64 {
	if !l.active || l.short || now.Sub(l.fullAt) >= b.notSooner(fullEvery) && now.Sub(l.asked) >= b.notSooner(fullAgain) {
		return 0
	}
	return l.mark.after(now)
}

// chunkOf is the chunk in which all watermarks are, or in the one after it:
// then no other tables need be looked into.
func (r *request) chunkOf() int64 {
	first, last := int64(math.MaxInt64), int64(0)
	for _, p := range r.probes {
		if p.after == 0 {
			return store.AllChunks
		}
		first, last = min(first, store.Chunk(p.after)), max(last, store.Chunk(p.after))
	}
	if last-first > 1 {
		return store.AllChunks
	}
	return first
}

// aJob is what a claim takes for each job beside looking for it.
const aJob = 10 * time.Microsecond

// claimed takes note of what a claim has found.
func (b *laneBook) claimed(r request, jobs []store.Claimed, took time.Duration, now time.Time) {
	if slices.ContainsFunc(r.probes, func(p probe) bool { return p.after == 0 && p.lane.lane >= 0 }) {
		b.fullCost = max(0, took-time.Duration(len(jobs))*aJob)
	}
	found := map[*queueLanes]int{}
	suspects := 0
	for i := range jobs {
		q := b.byName[jobs[i].Queue]
		if jobs[i].Lane == store.SuspectLane {
			suspects++
			continue
		}
		found[q]++
		if jobs[i].Lane >= 0 {
			for _, l := range q.lanes {
				if l.lane == jobs[i].Lane {
					l.highest = max(l.highest, jobs[i].Seq)
					if q.route.aging > 0 {
						b.grow(l, &jobs[i], now)
					}
				}
			}
		}
	}
	cut := len(jobs) >= r.limit // groups may not have been reached
	for _, g := range r.groups {
		n := suspects
		if g.queue != nil {
			n = found[g.queue]
			if n >= g.budget || !cut {
				g.queue.idle = n < g.budget
			}
		}
		short := n < g.budget && !cut
		probes := r.probes[g.first:g.last]
		reached := len(probes)
		for !short && reached > 0 && probes[reached-1].lane.highest == 0 {
			reached-- // those before may have used the budget up
		}
		for i, p := range probes {
			p.lane.read(p.after, i < reached, short, now)
		}
	}
}

// read notes that a claim has asked for the lane, whether it came as far, and
// whether to the lane's end.
func (l *lane) read(after int64, reached, short bool, now time.Time) {
	if after == 0 {
		l.asked = now
		if reached {
			l.fullAt = now
		}
	}
	if l.highest > 0 {
		l.mark.observe(l.highest)
		l.highest = 0
	}
	switch {
	case !short:
		l.active, l.short = true, false
	case after == 0:
		l.active, l.short, l.since = false, false, time.Time{}
	default:
		l.active, l.short = true, true
	}
}
