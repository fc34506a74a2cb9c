package simplequeue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// newTestRoutes serves every queue with the given permits.
func newTestRoutes(t *testing.T, permits int) *routes {
	t.Helper()
	opts, err := Options{
		QueuePermits: permits,
		Handlers:     []Handler{HandlerFunc("*", func(context.Context, *Job) error { return nil })},
	}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRoutes(&opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// laneRow is a row of a pretended queue table.
type laneRow struct {
	lane    store.Lane
	seq     int64
	commits time.Time
}

// laneTable answers claims as the statement does.
type laneTable struct{ rows []laneRow }

// claim takes what the request asks for and reports which rows that were.
func (l *laneTable) claim(r request, now time.Time) (jobs []store.Claimed, taken []laneRow) {
	for _, g := range r.groups {
		left := g.budget
		for _, p := range r.probes[g.first:g.last] {
			for left > 0 && len(jobs) < r.limit {
				next := -1
				for i, row := range l.rows {
					if row.lane.Queue == p.queue.route.name && row.lane.Priority == p.lane.lane && row.seq > p.after &&
						(r.chunk == store.AllChunks || row.seq < store.ChunkStart(r.chunk+2)) &&
						!row.commits.After(now) && (next < 0 || row.seq < l.rows[next].seq) {
						next = i
					}
				}
				if next < 0 {
					break
				}
				row := l.rows[next]
				l.rows = slices.Delete(l.rows, next, next+1)
				jobs = append(jobs, store.Claimed{Queue: row.lane.Queue, Lane: row.lane.Priority, Seq: row.seq})
				taken = append(taken, row)
				left--
			}
		}
	}
	return jobs, taken
}

// TestLaneBookFindsEveryRow: whatever the order of commits, wake-ups that come or
// do not, and rows that appear below the watermark, no row waits longer than an
// interval after it could be seen.
func TestLaneBookFindsEveryRow(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 7))
		now := time.Unix(1_700_000_000, 0)
		const every = time.Second
		b := newLaneBook(newTestRoutes(t, 1+rng.IntN(20)), every)
		table := laneTable{}
		lanes := []store.Lane{{Queue: "a"}, {Queue: "a", Priority: 5}, {Queue: "b", Priority: 9}}
		for _, l := range lanes {
			b.add(l)
		}
		var seq int64
		for end := now.Add(20 * time.Second); now.Before(end); now = now.Add(time.Duration(1+rng.IntN(50)) * time.Millisecond) {
			for range rng.IntN(4) {
				if seq++; rng.IntN(50) == 0 { // other lanes have filled tables meanwhile
					seq += rng.Int64N(store.ChunkStart(3))
				}
				row := laneRow{lane: lanes[rng.IntN(len(lanes))], seq: seq, commits: now}
				switch rng.IntN(20) {
				case 0: // a long transaction
					row.commits = now.Add(time.Duration(rng.IntN(5000)) * time.Millisecond)
				case 1: // given back by another process
					row.lane.Priority, row.seq = store.FrontLane, 1+rng.Int64N(seq)
				case 2:
					row.lane.Priority = store.SuspectLane
				case 3: // another process inserted it, and its wake-up got lost
				default:
					b.add(row.lane)
				}
				table.rows = append(table.rows, row)
			}
			for b.dueIn(now) <= 0 {
				r := b.request(now, 1+rng.IntN(30))
				if len(r.probes) == 0 {
					t.Fatalf("seed %d: a claim is due but there is no lane to look at", seed)
				}
				jobs, _ := table.claim(r, now)
				b.claimed(r, jobs, 0, now)
			}
			for _, row := range table.rows {
				// The poll interval has jitter; a busy lane is read from its
				// start every two seconds.
				if limit := max(every, fullEvery) * 3 / 2; now.Sub(row.commits) > limit {
					t.Fatalf("seed %d: %+v has not been found for %v", seed, row, now.Sub(row.commits))
				}
			}
		}
	}
}

// TestLaneBookKeepsOrderOfShortTransactions: in a lane that never runs empty, a
// row of a transaction shorter than the watermark's trail is never passed over:
// when a row is claimed, no row before it has long been there to be seen.
func TestLaneBookKeepsOrderOfShortTransactions(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	b := newLaneBook(newTestRoutes(t, 1000), time.Second)
	table := laneTable{}
	now := time.Unix(1_700_000_000, 0)
	l := store.Lane{Queue: "a"}
	b.add(l)
	claimed := 0
	for seq := int64(0); claimed < 20_000; now = now.Add(5 * time.Millisecond) {
		for range 20 {
			seq++
			table.rows = append(table.rows, laneRow{lane: l, seq: seq, commits: now.Add(time.Duration(rng.Int64N(int64(trail - 50*time.Millisecond))))})
		}
		b.add(l)
		r := b.request(now, 20)
		jobs, taken := table.claim(r, now)
		b.claimed(r, jobs, 0, now)
		claimed += len(jobs)
		var last int64
		for _, row := range taken {
			last = max(last, row.seq)
		}
		for _, row := range table.rows {
			if row.seq < last && !row.commits.After(now) {
				t.Fatalf("row %d is still there after row %d was claimed, although it could be seen for %v", row.seq, last, now.Sub(row.commits))
			}
		}
	}
}

// TestLaneBookBudgets: no request asks for more of a queue than its free
// permits, suspects included, nor do suspects keep the other jobs out.
func TestLaneBookBudgets(t *testing.T) {
	t.Parallel()
	for _, permits := range []int{1, 2, 5} {
		for _, suspects := range []int{0, 1, 40} {
			t.Run(fmt.Sprintf("%d permits %d suspects", permits, suspects), func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(uint64(permits), uint64(suspects)))
				b := newLaneBook(newTestRoutes(t, permits), time.Second)
				table := laneTable{}
				now := time.Unix(1_700_000_000, 0)
				for i := range 40 {
					for _, queue := range []string{"a", "b"} {
						table.rows = append(table.rows, laneRow{lane: store.Lane{Queue: queue, Priority: int16(i % 3)}, seq: int64(i + 1), commits: now})
						b.add(store.Lane{Queue: queue, Priority: int16(i % 3)})
						if i < suspects {
							table.rows = append(table.rows, laneRow{lane: store.Lane{Queue: queue, Priority: store.SuspectLane}, seq: int64(i + 1), commits: now})
						}
					}
				}
				total, done := len(table.rows), 0
				var running []store.Claimed
				for end := now.Add(time.Minute); done < total && now.Before(end); now = now.Add(10 * time.Millisecond) {
					b.suspectBusy = slices.ContainsFunc(running, func(c store.Claimed) bool { return c.Lane == store.SuspectLane })
					if b.dueIn(now) <= 0 {
						r := b.request(now, 1+rng.IntN(10))
						asked := map[*queueLanes]int{}
						for _, g := range r.groups {
							for _, q := range queuesOf(r, g) {
								asked[q] += g.budget
							}
						}
						for q, n := range asked {
							if free := q.route.budget(); n > free {
								t.Fatalf("asked for %d of %s, %d are free", n, q.route.name, free)
							}
						}
						jobs, _ := table.claim(r, now)
						b.claimed(r, jobs, 0, now)
						for _, j := range jobs {
							b.byName[j.Queue].route.inFlight.Add(1)
						}
						running = append(running, jobs...)
					}
					for len(running) > 0 && rng.IntN(3) > 0 {
						b.byName[running[0].Queue].route.inFlight.Add(-1)
						running, done = running[1:], done+1
					}
				}
				if done < total {
					t.Errorf("%d of %d jobs were claimed within a minute", done, total)
				}
			})
		}
	}
}

// queuesOf lists the queues of a group.
func queuesOf(r request, g group) []*queueLanes {
	var list []*queueLanes
	for _, p := range r.probes[g.first:g.last] {
		if !slices.Contains(list, p.queue) {
			list = append(list, p.queue)
		}
	}
	return list
}

// TestLaneBookReadsFewTables: where all watermarks are near one another a claim
// keeps to two tables of the ring; it needs all of them where they are not, or
// where a lane is read from its start.
func TestLaneBookReadsFewTables(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		marks []int64
		want  int64
	}{
		{[]int64{0}, store.AllChunks},
		{[]int64{5}, 0},
		{[]int64{store.ChunkStart(7) - 1}, 6},
		{[]int64{store.ChunkStart(7), store.ChunkStart(8)}, 7},
		{[]int64{store.ChunkStart(8), store.ChunkStart(7)}, 7},
		{[]int64{store.ChunkStart(7), store.ChunkStart(9)}, store.AllChunks},
		{[]int64{store.ChunkStart(7), 0}, store.AllChunks},
	} {
		var r request
		for _, after := range c.marks {
			r.probes = append(r.probes, probe{after: after})
		}
		if got := r.chunkOf(); got != c.want {
			t.Errorf("watermarks %v: chunk %d, want %d", c.marks, got, c.want)
		}
	}
}

// TestLaneBookReadsRarelyWhatIsSlow: the more a read without watermark costs, the
// rarer it is, but never so rare that late rows wait for long.
func TestLaneBookReadsRarelyWhatIsSlow(t *testing.T) {
	t.Parallel()
	for _, took := range []time.Duration{0, 50 * time.Millisecond, time.Second} {
		b := newLaneBook(newTestRoutes(t, 10), time.Second)
		b.add(store.Lane{Queue: "a"})
		now := time.Unix(1_700_000_000, 0)
		var spent, longest time.Duration
		last := now
		for end := now.Add(time.Minute); now.Before(end); now = now.Add(time.Millisecond) {
			b.add(store.Lane{Queue: "a"}) // wake-ups all the time
			r := b.request(now, 100)
			cost := time.Millisecond
			if r.chunk == store.AllChunks {
				if now.Sub(last) > time.Second { // the watermark is there
					spent, longest, cost = spent+took, max(longest, now.Sub(last)), took
				}
				last = now
			}
			b.claimed(r, []store.Claimed{{Queue: "a", Seq: 1 << 40}}, cost, now)
		}
		if share := max(time.Minute/fullShare, time.Minute/fullMost*took); spent > share*3/2 {
			t.Errorf("reads that take %v took %v of a minute, want at most %v", took, spent, share)
		}
		if limit := max(fullEvery, fullMost); longest > limit*3/2 {
			t.Errorf("with reads that take %v, none for %v, want one every %v", took, longest, limit)
		}
	}
}

// TestLaneBookServesAllQueuesInTurn: where permits are short, no queue is always
// first: each of many gets its share.
func TestLaneBookServesAllQueuesInTurn(t *testing.T) {
	t.Parallel()
	b := newLaneBook(newTestRoutes(t, 10), time.Second)
	table := laneTable{}
	now := time.Unix(1_700_000_000, 0)
	for i := range 20 {
		l := store.Lane{Queue: fmt.Sprint(i)}
		b.add(l)
		for n := range 100 {
			table.rows = append(table.rows, laneRow{lane: l, seq: int64(n + 1), commits: now})
		}
	}
	got := map[string]int{}
	for range 200 {
		now = now.Add(time.Millisecond)
		r := b.request(now, 5)
		jobs, _ := table.claim(r, now)
		b.claimed(r, jobs, 0, now)
		for _, j := range jobs {
			got[j.Queue]++
		}
	}
	for i := range 20 {
		if n := got[fmt.Sprint(i)]; n < 25 || n > 100 {
			t.Errorf("queue %d got %d of 1000 claims, want about 50", i, n)
		}
	}
}

// TestLaneBookIsQuiet: an idle queue is looked at once an interval, not more, and
// a lane that has run empty once more after a tenth of a second.
func TestLaneBookIsQuiet(t *testing.T) {
	t.Parallel()
	b := newLaneBook(newTestRoutes(t, 10), time.Second)
	table := laneTable{}
	now := time.Unix(1_700_000_000, 0)
	claims := 0
	look := func(d time.Duration) {
		for end := now.Add(d); now.Before(end); now = now.Add(time.Millisecond) {
			if b.dueIn(now) <= 0 {
				r := b.request(now, 100)
				jobs, _ := table.claim(r, now)
				b.claimed(r, jobs, 0, now)
				claims++
			}
		}
	}
	b.add(store.Lane{Queue: "a"})
	look(10 * time.Second)
	if claims < 8 || claims > 13 {
		t.Errorf("%d claims of an idle queue in ten intervals, want about 10", claims)
	}
	for i := range 10 {
		table.rows = append(table.rows, laneRow{lane: store.Lane{Queue: "a"}, seq: int64(i + 1), commits: now})
		b.add(store.Lane{Queue: "a"})
		claims = 0
		look(500 * time.Millisecond)
		if claims > 4 || len(table.rows) > 0 {
			t.Errorf("%d claims for one job, %d rows left, want up to 3 and the interval's own", claims, len(table.rows))
		}
	}
}

// TestLaneThatWasNotReachedIsNotRead: while lanes before it use up what a claim
// may take, a lane is asked for and not read. A row below its watermark is found
// with the first claim that comes as far.
func TestLaneThatWasNotReachedIsNotRead(t *testing.T) {
	t.Parallel()
	b := newLaneBook(newTestRoutes(t, 1), time.Second)
	b.suspectBusy = true // or the one permit would be for a suspect now and then
	table := laneTable{}
	now := time.Unix(1_700_000_000, 0)
	first, later := store.Lane{Queue: "a"}, store.Lane{Queue: "a", Priority: 5}
	seq, none := int64(0), laneRow{}
	add := func(l store.Lane) (row laneRow) {
		seq++
		row = laneRow{lane: l, seq: seq, commits: now}
		table.rows = append(table.rows, row)
		b.add(l)
		return row
	}
	claim := func() laneRow {
		now = now.Add(10 * time.Millisecond)
		r := b.request(now, 10)
		jobs, taken := table.claim(r, now)
		b.claimed(r, jobs, 0, now)
		return append(taken, none)[0]
	}
	for range 200 { // both lanes have watermarks
		add(later)
		claim()
	}
	late := laneRow{lane: later, seq: 1, commits: now}
	for range 2 {
		table.rows = append(table.rows, late)
		for range 400 { // the first lane is never short; the other one has more above its watermark
			add(first)
			add(later)
			if row := claim(); row.lane != first {
				t.Fatalf("claimed %+v, want the first lane's", row)
			}
		}
		now = now.Add(fullAgain)
		if row := claim(); row != late {
			t.Fatalf("the first claim that came as far took %+v, want %+v", row, late)
		}
	}
}

// TestWatermarkFollowsPlacesThatAreSetBack: after a failover or a restore has set
// the places back, a lane is soon read at its full pace again, and late commits
// alone do not take its watermark away.
func TestWatermarkFollowsPlacesThatAreSetBack(t *testing.T) {
	t.Parallel()
	b := newLaneBook(newTestRoutes(t, 1000), time.Second)
	table := laneTable{}
	now := time.Unix(1_700_000_000, 0)
	l := store.Lane{Queue: "a"}
	seq := int64(1 << 30)
	add := func(seq int64) {
		table.rows = append(table.rows, laneRow{lane: l, seq: seq, commits: now})
		b.add(l)
	}
	turn := func() (claimed int, marked bool) {
		now = now.Add(10 * time.Millisecond)
		if b.dueIn(now) > 0 {
			return 0, true
		}
		r := b.request(now, 10)
		jobs, _ := table.claim(r, now)
		b.claimed(r, jobs, 0, now)
		return len(jobs), r.chunk != store.AllChunks
	}
	full := 0
	for i := range 1000 { // one job in ten commits late
		seq++
		add(seq)
		if i%10 == 0 {
			add(int64(i + 1))
		}
		if _, marked := turn(); !marked && i > 100 {
			full++
		}
	}
	if full > 100 {
		t.Errorf("%d of 900 claims of a lane with late commits had no watermark", full)
	}
	table.rows = nil
	for seq = 1; seq <= 5000; seq++ {
		add(seq)
	}
	claimed := 0
	for range 200 { // two seconds
		n, _ := turn()
		claimed += n
	}
	if claimed < 1500 {
		t.Errorf("%d jobs claimed within two seconds after the places were set back, want nearly 2000", claimed)
	}
}
