package main

import (
	"strings"
	"testing"
	"time"
)

// TestLedgerChecksOrder: three calls, the first two of which overlap, insert jobs
// of one order key, beside which there is another.
func TestLedgerChecksOrder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ran           []int // jobs 0 and 1 are of call 0, 2 and 3 of call 1, 4 and 5 of call 2; 6 is of the other key
		early, behind int
	}{
		"as inserted":                   {ran: []int{0, 1, 2, 3, 4, 5, 6}},
		"the overlapping calls swapped": {ran: []int{2, 3, 0, 1, 4, 5, 6}},
		"the other key first":           {ran: []int{6, 0, 1, 2, 3, 4, 5}},
		"a list backwards":              {ran: []int{1, 0, 2, 3, 4, 5, 6}, early: 1},
		"the last list backwards":       {ran: []int{0, 1, 2, 3, 5, 4, 6}, early: 1},
		"a list torn and backwards":     {ran: []int{1, 2, 3, 0, 4, 5, 6}, early: 1},
		"a later call first":            {ran: []int{4, 0, 1, 2, 3, 5, 6}, early: 4},
		"a later call last but one":     {ran: []int{0, 1, 2, 4, 5, 3, 6}, early: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &ledger{orderKey: func(n int) int { return n / 6 }}
			for i, jobs := range []int{2, 2, 2, 1} {
				first, err := l.take(jobs)
				if err != nil {
					t.Fatal(err)
				}
				if i == 1 { // begins before the call before it has returned
					l.calls[1].at = l.entry(0).committed.Load() - 1
				}
				l.commit(first, jobs)
			}
			begin := time.Now().UnixNano()
			for i, n := range c.ran {
				l.note(attempt{N: n, Number: 1, At: begin + int64(i)})
			}
			if early, behind := l.runOrder(); early != c.early || behind != 5 { // all but the first of each key
				t.Errorf("%d early, %d behind another, want %d and 5", early, behind, c.early)
			}
			if err := l.check(false); (err != nil) != (c.early > 0) || err != nil && !strings.Contains(err.Error(), "not in order") {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// TestBehindAnother: a job that comes when the one before it has started is
// behind nobody.
func TestBehindAnother(t *testing.T) {
	t.Parallel()
	l := &ledger{orderKey: func(int) int { return 0 }}
	for range 2 {
		n, err := l.take(1)
		if err != nil {
			t.Fatal(err)
		}
		l.commit(n, 1)
		l.note(attempt{N: n, Number: 1, At: time.Now().UnixNano()})
	}
	if early, behind := l.runOrder(); early != 0 || behind != 0 {
		t.Errorf("%d early, %d behind another", early, behind)
	}
}

func TestLedgerChecksUnique(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		inserted []int // of jobs 0 to 3, of which the odd ones are duplicates
		want     string
	}{
		"duplicates refused":   {inserted: []int{0, 2}},
		"a duplicate accepted": {inserted: []int{0, 2, 3}, want: "1 duplicates were accepted, and 0 refused"},
		"too much refused":     {inserted: []int{2}, want: "0 duplicates were accepted, and 1 refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &ledger{duplicate: func(n int) bool { return n%2 == 1 }}
			if _, err := l.take(4); err != nil {
				t.Fatal(err)
			}
			for _, n := range c.inserted {
				l.commit(n, 1)
				l.note(attempt{N: n, Number: 1, At: time.Now().UnixNano()})
			}
			switch err := l.check(false); {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), "not unique") || !strings.Contains(err.Error(), c.want)):
				t.Errorf("check: %v, want %q", err, c.want)
			}
		})
	}
}

// TestShares: duplicates and order keys come as often as they should.
func TestShares(t *testing.T) {
	t.Parallel()
	const jobs = 100_000
	duplicates, used := 0, map[int]bool{}
	for n := range jobs {
		if scatter(n, 0, 100) < duplicatePercent {
			duplicates++
		}
		used[scatter(n, 0, 1000)] = true
	}
	if duplicates < jobs*29/100 || duplicates > jobs*31/100 {
		t.Errorf("%d of %d jobs are duplicates", duplicates, jobs)
	}
	if len(used) != 1000 {
		t.Errorf("%d of 1000 keys are used", len(used))
	}
}
