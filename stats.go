package simplequeue

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is a snapshot of what one process does. The counters count since New.
type Stats struct {
	Running     int // jobs in a handler, or waiting for a permit or for payload memory
	Stuck       int // handlers that do not return although their context has ended
	FreePermits int // global permits

	// PayloadBytes is how much of Options.PayloadMemory is in use.
	PayloadBytes int64

	Claims       int64 // statements that claimed at least one job
	Claimed      int64 // jobs
	Risen        int64 // of these, claimed before jobs of higher priority for their age
	Completed    int64
	Retried      int64 // failed attempts that are tried again
	Rescheduled  int64
	Deferred     int64 // by a handler's own permit
	GivenBack    int64 // unrun, by a permit that was not granted in time or by a stop
	Parked       int64 // of a kind unknown here
	DeadLettered int64 // failed, cancelled, unprocessable, critical_failure or bad_job
	LeasesLost   int64
	Reaped       int64 // jobs of dead workers found by this process

	LogLines        int64 // of handlers, given to the sink
	LogLinesDropped int64 // for want of room, or refused by the sink

	Queues map[string]QueueStats // the queues met so far
}

// QueueStats is the part of [Stats] for one queue.
type QueueStats struct {
	InFlight int // claimed and not ended
	Running  int // holding a permit
	Permits  int // how many there are, free or not
}

// counters are updated by the engine's goroutines.
type counters struct {
	running, stuck                                   atomic.Int64
	claims, claimed, completed, retried, rescheduled atomic.Int64
	deferred, givenBack, parked, dead                atomic.Int64
	leasesLost, reaped, payloadBytes, risen          atomic.Int64
	logLines, logLinesDropped                        atomic.Int64
}

// count counts one outcome that has been written.
func (c *counters) count(o outcomeOf) {
	switch o.verdict.action {
	case actComplete:
		c.completed.Add(1)
	case actRetry:
		c.retried.Add(1)
	case actReschedule:
		c.rescheduled.Add(1)
	case actDefer:
		c.deferred.Add(1)
	case actGiveBack:
		c.givenBack.Add(1)
	case actPark:
		c.parked.Add(1)
	default:
		c.dead.Add(1)
	}
}

// Stats returns a snapshot.
func (q *SimpleQueue) Stats() Stats {
	c := &q.stats
	s := Stats{
		Running: int(c.running.Load()), Stuck: int(c.stuck.Load()),
		Claims: c.claims.Load(), Claimed: c.claimed.Load(), Completed: c.completed.Load(), Retried: c.retried.Load(),
		Rescheduled: c.rescheduled.Load(), Deferred: c.deferred.Load(), GivenBack: c.givenBack.Load(),
		Parked: c.parked.Load(), DeadLettered: c.dead.Load(), LeasesLost: c.leasesLost.Load(), Reaped: c.reaped.Load(), Risen: c.risen.Load(),
		PayloadBytes: c.payloadBytes.Load(), LogLines: c.logLines.Load(), LogLinesDropped: c.logLinesDropped.Load(),
		Queues: map[string]QueueStats{},
	}
	s.FreePermits = max(0, q.opts.GlobalPermits-s.Running)
	for _, r := range q.routes.served() {
		limit, used := r.permits.state()
		s.Queues[r.name] = QueueStats{InFlight: int(r.inFlight.Load()), Running: used, Permits: limit}
	}
	return s
}

// Health tells whether the engine makes progress.
type Health struct {
	OK       bool     // Run is going and every loop of it works
	Problems []string // what does not, and since when
}

// A loop is in trouble when it has failed for failingFor, or has not been round
// for silentFor.
const (
	failingFor = 3 * time.Second
	silentFor  = 25 * time.Second
)

// loopHealth is the state of one background loop.
type loopHealth struct {
	name string

	mu      sync.Mutex
	seen    time.Time
	failing time.Time // since when, zero if it is not
	err     error
}

// report notes that the loop has been round, with or without an error.
func (h *loopHealth) report(err error) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen, h.err = now, err
	if err == nil {
		h.failing = time.Time{}
	} else if h.failing.IsZero() {
		h.failing = now
	}
}

func (h *loopHealth) problem(now time.Time, every time.Duration) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.failing.IsZero() && now.Sub(h.failing) >= failingFor:
		return fmt.Sprintf("%s fails since %s: %v", h.name, h.failing.Format(time.RFC3339), h.err)
	case now.Sub(h.seen) >= max(silentFor, 3*every):
		return fmt.Sprintf("%s silent since %s", h.name, h.seen.Format(time.RFC3339))
	}
	return ""
}

// health is the state of all loops.
type health struct {
	mu    sync.Mutex
	loops []*loopHealth
	every []time.Duration
}

// loop adds a loop that goes round at least once an interval.
func (h *health) loop(name string, every time.Duration) *loopHealth {
	l := &loopHealth{name: name, seen: time.Now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loops, h.every = append(h.loops, l), append(h.every, every)
	return l
}

func (h *health) check() []string {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	var problems []string
	for i, l := range h.loops {
		if p := l.problem(now, h.every[i]); p != "" {
			problems = append(problems, p)
		}
	}
	return problems
}

// Health reports problems that have lasted a few seconds. It asks the database
// nothing.
func (q *SimpleQueue) Health() Health {
	e := q.engine.Load()
	if e == nil {
		return Health{Problems: []string{"not running"}}
	}
	problems := e.health.check()
	if spool := q.opts.Spool; spool != nil {
		if p := spool.Problem(); p != "" {
			problems = append(problems, p)
		}
	}
	return Health{OK: len(problems) == 0, Problems: problems}
}

// alive notes that a loop with nothing to do is well; one that fails stays so.
func (h *loopHealth) alive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = time.Now()
}
