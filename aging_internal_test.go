package simplequeue

import (
	"context"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// agedRow is a row of a pretended queue.
type agedRow struct {
	lane    int16
	seq     int64
	created time.Time
	entered time.Time
}

// ageing is one queue that is worked in pretended time.
type ageing struct {
	book  *laneBook
	now   time.Time
	seq   int64
	lanes [10][]agedRow
}

func newAgeing(t *testing.T, aging time.Duration) *ageing {
	t.Helper()
	opts, err := Options{Aging: aging, Handlers: []Handler{HandlerFunc("*", func(context.Context, *Job) error { return nil })}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRoutes(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return &ageing{book: newLaneBook(r, time.Second), now: time.Unix(1_700_000_000, 0)}
}

func (a *ageing) insert(lane int16, created time.Time) {
	a.seq++
	a.lanes[lane] = append(a.lanes[lane], agedRow{lane, a.seq, created, a.now})
	a.book.add(store.Lane{Queue: "a", Priority: lane})
}

// look is what the poller asks the database every now and then. The database's
// clock is another.
func (a *ageing) look() {
	lanes, names, _ := a.book.agingLanes()
	heads := store.Heads{LastSeq: a.seq, Now: a.now.Add(-time.Hour), First: make([]*store.Head, len(names))}
	for i, n := range names {
		if rows := a.lanes[n.Priority]; len(rows) > 0 {
			heads.First[i] = &store.Head{Seq: rows[0].seq, CreatedAt: rows[0].created.Add(-time.Hour)}
		}
	}
	a.book.learnHeads(lanes, heads, a.now)
}

// claim claims so many jobs.
func (a *ageing) claim(n int) (claimed []agedRow) {
	r := a.book.request(a.now, n)
	var jobs []store.Claimed
	for _, g := range r.groups {
		left := min(g.budget, n-len(jobs))
		for _, p := range r.probes[g.first:g.last] {
			if p.lane.lane < 0 {
				continue
			}
			rows := &a.lanes[p.lane.lane]
			for left > 0 && len(*rows) > 0 {
				row := (*rows)[0]
				*rows, left = (*rows)[1:], left-1
				jobs = append(jobs, store.Claimed{Queue: "a", Lane: row.lane, Seq: row.seq, CreatedAt: row.created.Add(-time.Hour)})
				claimed = append(claimed, row)
			}
		}
	}
	a.book.claimed(r, jobs, 0, a.now)
	return claimed
}

// TestLowPriorityIsNotStarved: nine in ten jobs are of priority 0 and more than
// can be worked, for an hour. With aging a job of priority 9 waits longer than
// those of its time, but by no more than nine times Aging; without it for ever.
func TestLowPriorityIsNotStarved(t *testing.T) {
	t.Parallel()
	for _, aging := range []time.Duration{0, 10 * time.Second} {
		a := newAgeing(t, aging)
		const perSecond = 100
		var high, low []time.Duration // waits of those claimed in the last ten minutes
		for i := range 60 * 60 * 10 {
			a.now = a.now.Add(100 * time.Millisecond)
			if aging > 0 && i%10 == 0 {
				a.look()
			}
			for range perSecond / 10 * 105 / 100 { // 5 % more than can be worked
				a.insert(0, a.now)
			}
			if i%10 < 9 {
				a.insert(9, a.now)
			}
			for _, row := range a.claim(perSecond / 10) {
				if i < 50*60*10 {
					continue
				}
				if waited := a.now.Sub(row.entered); row.lane == 0 {
					high = append(high, waited)
				} else {
					low = append(low, waited)
				}
			}
		}
		if aging == 0 {
			if len(low) > 0 || a.book.risen != 0 {
				t.Errorf("without aging %d jobs of priority 9 run, %d have risen", len(low), a.book.risen)
			}
			continue
		}
		if len(low) < len(high)/20 || a.book.risen == 0 {
			t.Errorf("%d jobs of priority 9 run beside %d of priority 0; %d have risen", len(low), len(high), a.book.risen)
			continue
		}
		if more := mean(low) - mean(high); more < 8*aging || more > 10*aging {
			t.Errorf("a job of priority 9 waits %v longer than one of priority 0, want 9 times %v", more, aging)
		}
	}
}

func mean(list []time.Duration) time.Duration {
	var sum time.Duration
	for _, d := range list {
		sum += d
	}
	return sum / time.Duration(len(list))
}

// TestAgingKeepsPriorities: as long as no job has waited its time, the order is
// strictly by priority; and those that others leave alone run at once.
func TestAgingKeepsPriorities(t *testing.T) {
	t.Parallel()
	a := newAgeing(t, time.Minute)
	for lane := int16(9); lane >= 0; lane-- {
		for range 5 {
			a.insert(lane, a.now)
		}
		a.now = a.now.Add(time.Second)
		a.look()
	}
	last := int16(0)
	for range 10 {
		for _, row := range a.claim(5) {
			if row.lane < last {
				t.Fatalf("a job of priority %d after one of %d", row.lane, last)
			}
			last = row.lane
		}
	}
	if a.book.risen != 0 || last != 9 {
		t.Errorf("%d jobs have risen, the last was of priority %d", a.book.risen, last)
	}
	a.insert(9, a.now)
	a.now = a.now.Add(time.Hour)
	a.look()
	a.insert(0, a.now)
	if first := a.claim(1); len(first) != 1 || first[0].lane != 9 || a.book.risen != 1 {
		t.Errorf("after an hour %+v runs first, %d have risen", first, a.book.risen)
	}
}

// TestAgeIsThatOfTheEntry: a job that was inserted long before its time is as old
// as it has been in the queue.
func TestAgeIsThatOfTheEntry(t *testing.T) {
	t.Parallel()
	a := newAgeing(t, time.Minute)
	a.insert(0, a.now)
	a.insert(9, a.now)
	a.claim(2)
	for range 60 {
		a.now = a.now.Add(time.Second)
		a.look()
	}
	a.insert(9, a.now.Add(-24*time.Hour)) // it was scheduled
	a.now = a.now.Add(time.Second)
	a.look()
	a.insert(0, a.now)
	if first := a.claim(1); first[0].lane != 0 {
		t.Error("a job that was scheduled yesterday and has entered now counts as a day old")
	}
}

// TestEntryBook: what is known of entries is bounded, the nearer the better.
func TestEntryBook(t *testing.T) {
	t.Parallel()
	var e entryBook
	began := time.Unix(1_700_000_000, 0)
	at := func(i int) time.Time { return began.Add(time.Duration(i) * time.Second) }
	const n = 20_000
	for i := range n {
		e.note(int64(10*i), at(i))
	}
	if len(e.seqs) > maxEntryNotes {
		t.Errorf("%d notes are kept", len(e.seqs))
	}
	for _, ago := range []int{2, 10, 50, 100, 1000, 15_000} {
		i := n - ago
		got := e.entered(int64(10*i+5), time.Time{}, at(n)) // made ages ago
		if got.After(at(i)) || at(n).Sub(got) > at(n).Sub(at(i))*5/4+2*time.Second {
			t.Errorf("an entry %d s ago is taken for one %v ago", ago, at(n).Sub(got))
		}
	}
	if got := e.entered(10*n+5, at(n+5), at(n+1)); !got.Equal(at(n + 1)) {
		t.Errorf("an entry in the future: %v", got)
	}
	e.note(10*(n-1), at(n+100)) // nothing has entered since
	if got := e.entered(10*n, at(5), at(n+101)); !got.Equal(at(n + 100)) {
		t.Errorf("what enters after a quiet time entered %v before its end", at(n+100).Sub(got))
	}
}
