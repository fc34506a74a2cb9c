package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ledger knows every job of a run, and checks that each that was inserted ran
// exactly once: attempt after attempt, as often as the scenario lets it fail,
// and not again after it has succeeded. Where jobs have keys it also checks what
// those promise.
type ledger struct {
	fail      int            // percent of attempts
	orderKey  func(int) int  // of a job; nil where there are none
	duplicate func(int) bool // whether the insert of a job has to be refused; nil where none has

	mu    sync.Mutex
	next  int    // the first number that has not been given out
	calls []call // noted where there are order keys
	pages [1 << 14]atomic.Pointer[page]

	committed, done, attempts atomic.Int64
	repeats, unknown, damaged atomic.Int64
}

const pageSize = 1 << 14

type page [pageSize]entry

// entry is one job. Times are Unix nanoseconds, 0 for not yet.
type entry struct {
	committed atomic.Int64 // when the insert returned
	started   atomic.Int64 // its first attempt
	attempt   atomic.Int32 // the last one, negative once one has succeeded
}

// take gives out n numbers for one call of an insert and returns the first.
func (l *ledger) take(n int) (first int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first = l.next
	if first+n > len(l.pages)*pageSize {
		return 0, fmt.Errorf("a run has at most %d jobs", len(l.pages)*pageSize)
	}
	l.next += n
	if l.orderKey != nil {
		l.calls = append(l.calls, call{first, time.Now().UnixNano()})
	}
	for p := first / pageSize; p <= (l.next-1)/pageSize; p++ {
		if l.pages[p].Load() == nil {
			l.pages[p].Store(new(page))
		}
	}
	return first, nil
}

// entry returns nil for a number that was never given out.
func (l *ledger) entry(n int) *entry {
	if n < 0 || n >= len(l.pages)*pageSize {
		return nil
	}
	p := l.pages[n/pageSize].Load()
	if p == nil {
		return nil
	}
	return &p[n%pageSize]
}

// commit notes that the jobs from first on are in the queue.
func (l *ledger) commit(first, n int) {
	now := time.Now().UnixNano()
	for i := first; i < first+n; i++ {
		l.entry(i).committed.Store(now)
	}
	l.committed.Add(int64(n))
}

// attempt is what a worker tells of the start of a handler.
type attempt struct {
	N, Number int
	At        int64 // Unix nanoseconds
	Damaged   bool  // its payload is not what was inserted
}

// note takes down an attempt.
func (l *ledger) note(a attempt) {
	l.attempts.Add(1)
	if a.Damaged {
		l.damaged.Add(1)
	}
	e := l.entry(a.N)
	if e == nil {
		l.unknown.Add(1)
		return
	}
	last, this := e.attempt.Load(), int32(a.Number)
	good := !fails(a.N, a.Number, l.fail)
	if good {
		this = -this
	}
	if last != int32(a.Number)-1 || !e.attempt.CompareAndSwap(last, this) {
		l.repeats.Add(1)
		return
	}
	if a.Number == 1 {
		e.started.Store(a.At)
	}
	if good {
		l.done.Add(1)
	}
}

// fails reports whether an attempt is one of those that are to fail. Worker
// processes and the ledger agree about it without talking.
func fails(n, attempt, percent int) bool {
	return scatter(n, attempt, 100) < percent && attempt < maxTries
}

// scatter returns a number below most: any, and always the same for n and salt.
func scatter(n, salt, most int) int {
	x := uint64(n)*0x9e3779b97f4a7c15 + uint64(salt)*0xbf58476d1ce4e5b9
	x ^= x >> 31
	x *= 0x94d049bb133111eb
	return int((x >> 33) % uint64(most))
}

// ahead is the number of jobs that are in the queue and have not run.
func (l *ledger) ahead() int64 { return l.committed.Load() - l.done.Load() }

// latencies are the times from the insert's return to the start of the handler,
// sorted, of the given jobs, or without any of those that were started between
// two moments. A handler that was faster than the insert's answer counts as 0.
func (l *ledger) latencies(jobs []int, from, to time.Time) []time.Duration {
	var all []time.Duration
	add := func(n int) {
		e := l.entry(n)
		committed, started := e.committed.Load(), e.started.Load()
		if committed == 0 || started == 0 || jobs == nil && (started < from.UnixNano() || started >= to.UnixNano()) {
			return
		}
		all = append(all, time.Duration(max(0, started-committed)))
	}
	if jobs == nil {
		l.mu.Lock()
		next := l.next
		l.mu.Unlock()
		for n := range next {
			add(n)
		}
	}
	for _, n := range jobs {
		add(n)
	}
	slices.Sort(all)
	return all
}

// check is for when all is over. atLeastOnce forgives repeats.
func (l *ledger) check(atLeastOnce bool) error {
	var all []error
	lost, unknown := 0, int(l.unknown.Load())
	for n := range l.next {
		e := l.entry(n)
		inserted, ran := e.committed.Load() != 0, e.attempt.Load()
		if inserted && ran >= 0 {
			lost++
		}
		if !inserted && ran != 0 {
			unknown++
		}
	}
	repeats, damaged := l.repeats.Load(), l.damaged.Load()
	if atLeastOnce {
		repeats = 0
	}
	if lost+unknown > 0 || repeats+damaged > 0 {
		all = append(all, fmt.Errorf("not exactly once: of %d jobs %d did not succeed, %d attempts were repeats, %d were of no job, %d had a damaged payload",
			l.committed.Load(), lost, repeats, unknown, damaged))
	}
	return errors.Join(append(all, l.checkOrder(), l.checkUnique())...)
}
