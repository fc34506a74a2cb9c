package main

import (
	"fmt"
	"slices"
)

// call is one call of an insert.
type call struct {
	first int   // number of its first job
	at    int64 // before it, Unix nanoseconds
}

// callOf returns the index of the call that inserted the n-th job.
func (l *ledger) callOf(n int) int {
	i, found := slices.BinarySearchFunc(l.calls, n, func(c call, n int) int { return c.first - n })
	if !found {
		i--
	}
	return i
}

// runOrder compares the order in which the jobs of each order key started with
// that of their inserts. Of two calls it is known which committed first if one
// had returned when the other began; the jobs of one call are in the order of
// its list. early is how many jobs started later than one that had to wait for
// them, behind how many were inserted when the one before them had not started.
func (l *ledger) runOrder() (early, behind int) {
	byKey := map[int][]int{}
	for n := range l.next {
		if e := l.entry(n); e.committed.Load() != 0 && e.started.Load() != 0 {
			byKey[l.orderKey(n)] = append(byKey[l.orderKey(n)], n)
		}
	}
	for _, jobs := range byKey {
		slices.SortStableFunc(jobs, func(a, b int) int { return int(l.entry(a).started.Load() - l.entry(b).started.Load()) })
		var latest int64      // when the last call began of those whose jobs have started
		last := map[int]int{} // the last job of a call
		for i, n := range jobs {
			c, committed := l.callOf(n), l.entry(n).committed.Load()
			if before, ok := last[c]; committed < latest || ok && n < before {
				early++
			}
			if i > 0 && committed < l.entry(jobs[i-1]).started.Load() {
				behind++
			}
			latest, last[c] = max(latest, l.calls[c].at), max(last[c], n)
		}
	}
	return early, behind
}

func (l *ledger) checkOrder() error {
	if l.orderKey == nil {
		return nil
	}
	if early, _ := l.runOrder(); early > 0 {
		return fmt.Errorf("not in order: %d of %d jobs were overtaken by a later one of their order key", early, l.committed.Load())
	}
	return nil
}

func (l *ledger) checkUnique() error {
	if l.duplicate == nil {
		return nil
	}
	accepted, refused := 0, 0
	for n := range l.next {
		switch inserted := l.entry(n).committed.Load() != 0; {
		case inserted && l.duplicate(n):
			accepted++
		case !inserted && !l.duplicate(n):
			refused++
		}
	}
	if accepted+refused > 0 {
		return fmt.Errorf("not unique: of %d inserts %d duplicates were accepted, and %d refused that were none", l.next, accepted, refused)
	}
	return nil
}
