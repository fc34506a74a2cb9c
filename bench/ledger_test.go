package main

import (
	"strings"
	"testing"
	"time"
)

// newRun returns a ledger with n jobs inserted.
func newRun(t *testing.T, n, fail int) *ledger {
	t.Helper()
	l := &ledger{fail: fail}
	first, err := l.take(n)
	if err != nil {
		t.Fatal(err)
	}
	l.commit(first, n)
	return l
}

func TestLedgerAcceptsEachJobOnce(t *testing.T) {
	t.Parallel()
	const jobs = 3*pageSize + 5
	l := newRun(t, jobs, 30)
	for n := range jobs {
		for number := 1; ; number++ {
			l.note(attempt{N: n, Number: number, At: time.Now().UnixNano()})
			if !fails(n, number, 30) {
				break
			}
		}
	}
	if err := l.check(false); err != nil {
		t.Error(err)
	}
	if l.done.Load() != jobs || l.ahead() != 0 {
		t.Errorf("%d done, %d ahead", l.done.Load(), l.ahead())
	}
	perJob := float64(l.attempts.Load()) / jobs
	if perJob < 1.40 || perJob > 1.46 { // 1/(1-0.3) = 1.43
		t.Errorf("%.3f attempts per job", perJob)
	}
}

func TestLedgerRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		attempts []attempt
		skip     bool // job 1 was a duplicate and is not in the queue
		repeat   bool // what is wrong is a repeat, which at-least-once forgives
	}{
		"a job that did not run":      {attempts: []attempt{{N: 0, Number: 1}}},
		"a job that ran twice":        {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 1}, {N: 1, Number: 1}}, repeat: true},
		"an attempt after success":    {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 1}, {N: 1, Number: 2}}, repeat: true},
		"a job never inserted":        {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 1}, {N: 1 << 20, Number: 1}}},
		"a negative number":           {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 1}, {N: -1, Number: 1}}},
		"a damaged payload":           {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 1, Damaged: true}}},
		"a skipped job that ran":      {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 1}}, skip: true},
		"an attempt that was skipped": {attempts: []attempt{{N: 0, Number: 1}, {N: 1, Number: 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &ledger{}
			if _, err := l.take(2); err != nil {
				t.Fatal(err)
			}
			l.commit(0, 2)
			if c.skip {
				l.entry(1).committed.Store(0)
			}
			for _, a := range c.attempts {
				l.note(a)
			}
			if err := l.check(false); err == nil || !strings.Contains(err.Error(), "not exactly once") {
				t.Errorf("check: %v", err)
			}
			if err := l.check(true); (err == nil) != c.repeat {
				t.Errorf("check of an at-least-once queue: %v", err)
			}
		})
	}
}

func TestFailedAttemptRunsAgainOnce(t *testing.T) {
	t.Parallel()
	n := 0
	for !fails(n, 1, 30) || fails(n, 2, 30) {
		n++
	}
	l := newRun(t, n+1, 30)
	for _, number := range []int{1, 1, 2} {
		l.note(attempt{N: n, Number: number})
	}
	if l.repeats.Load() != 1 {
		t.Errorf("%d repeats, want the second run of the first attempt", l.repeats.Load())
	}
}

func TestLatencies(t *testing.T) {
	t.Parallel()
	l := newRun(t, 3, 0)
	begin := time.Unix(0, l.entry(0).committed.Load())
	for n, d := range []time.Duration{5 * time.Millisecond, -time.Millisecond, 2 * time.Second} {
		l.note(attempt{N: n, Number: 1, At: begin.Add(d).UnixNano()})
	}
	all := l.latencies(nil, begin.Add(-time.Second), begin.Add(time.Second))
	if len(all) != 2 || all[0] != 0 || all[1] != 5*time.Millisecond {
		t.Errorf("within a second: %v", all)
	}
	if all := l.latencies([]int{2}, begin, begin); len(all) != 1 || all[0] != 2*time.Second {
		t.Errorf("of job 2: %v", all)
	}
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	var all []time.Duration
	for i := range 101 {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	for _, p := range []int{50, 95, 99} {
		if got := *percentile(all, p); got != float64(p) {
			t.Errorf("p%d of 0 to 100 ms is %v", p, got)
		}
	}
}
