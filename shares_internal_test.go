package simplequeue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// sharing is a process whose queues share its permits, in pretended time.
type sharing struct {
	t       *testing.T
	book    *laneBook
	now     time.Time
	permits int
	seq     int64
	waiting map[string]int
	takes   map[string]time.Duration // to run a job
	running map[string][]time.Time   // when jobs end
	claims  int
	held    map[string]int // summed up over time
	moments int
}

func newSharing(t *testing.T, permits int, queues map[string]QueueOptions) *sharing {
	t.Helper()
	opts, err := Options{
		GlobalPermits: permits, QueuePermits: permits, Queues: queues,
		Handlers: []Handler{HandlerFunc("*", func(context.Context, *Job) error { return nil })},
	}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRoutes(&opts)
	if err != nil {
		t.Fatal(err)
	}
	s := &sharing{
		t: t, book: newLaneBook(r, time.Second), now: time.Unix(1_700_000_000, 0), permits: permits,
		waiting: map[string]int{}, takes: map[string]time.Duration{}, running: map[string][]time.Time{}, held: map[string]int{},
	}
	for name := range queues {
		s.takes[name] = 20 * time.Millisecond
		s.book.add(store.Lane{Queue: name})
	}
	return s
}

func (s *sharing) inFlight() (n int) {
	for _, ends := range s.running {
		n += len(ends)
	}
	return n
}

// claim claims for the permits that are free.
func (s *sharing) claim() {
	free := s.permits - s.inFlight()
	if free == 0 || s.book.dueIn(s.now) > 0 {
		return
	}
	r := s.book.request(s.now, free)
	var jobs []store.Claimed
	for _, g := range r.groups {
		if g.queue == nil {
			continue
		}
		name := g.queue.route.name
		if g.budget < 1 || g.budget > g.queue.route.budget() {
			s.t.Fatalf("asks for %d of %s, which has room for %d", g.budget, name, g.queue.route.budget())
		}
		for n := min(g.budget, s.waiting[name], r.limit-len(jobs)); n > 0; n-- {
			s.seq++
			s.waiting[name]--
			jobs = append(jobs, store.Claimed{Queue: name, Seq: s.seq})
		}
	}
	s.claims++
	s.book.claimed(r, jobs, 0, s.now)
	for _, j := range jobs {
		s.book.byName[j.Queue].route.inFlight.Add(1)
		s.running[j.Queue] = append(s.running[j.Queue], s.now.Add(s.takes[j.Queue]*time.Duration(80+rand.IntN(40))/100))
	}
}

// run lets time go by, with at most two claims a millisecond.
func (s *sharing) run(d time.Duration, each func()) {
	for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(time.Millisecond) {
		for name, ends := range s.running {
			var left []time.Time
			for _, at := range ends {
				if at.After(s.now) {
					left = append(left, at)
				}
			}
			s.book.byName[name].route.inFlight.Add(int64(len(left) - len(ends)))
			s.running[name] = left
		}
		if each != nil {
			each()
		}
		s.claim()
		s.claim()
		for name, ends := range s.running {
			s.held[name] += len(ends)
		}
		s.moments++
	}
}

// share is how many permits a queue held, on average.
func (s *sharing) share(queue string) float64 { return float64(s.held[queue]) / float64(s.moments) }

func (s *sharing) expect(want map[string]float64) {
	s.t.Helper()
	for queue, w := range want {
		if got := s.share(queue); got < w*0.9-0.5 || got > w*1.1+0.5 {
			s.t.Errorf("%s holds %.1f permits, want %.1f", queue, got, w)
		}
	}
}

// TestPermitsAreSharedByWeight: queues that all have work hold the global
// permits by their weights, however long their jobs take, as far as their own
// permits reach; what one does not use the others have.
func TestPermitsAreSharedByWeight(t *testing.T) {
	t.Parallel()
	const much = 1 << 30
	for name, c := range map[string]struct {
		queues  map[string]QueueOptions
		waiting map[string]int
		takes   map[string]time.Duration
		want    map[string]float64
	}{
		"equal": {
			map[string]QueueOptions{"a": {}, "b": {}}, map[string]int{"a": much, "b": much}, nil, map[string]float64{"a": 50, "b": 50},
		},
		"weights": {
			map[string]QueueOptions{"a": {Weight: 3}, "b": {}}, map[string]int{"a": much, "b": much}, nil, map[string]float64{"a": 75, "b": 25},
		},
		"slow and quick": {
			map[string]QueueOptions{"a": {}, "b": {}},
			map[string]int{"a": much, "b": much},
			map[string]time.Duration{"a": 500 * time.Millisecond, "b": 5 * time.Millisecond},
			map[string]float64{"a": 50, "b": 48},
		},
		"slow and light": {
			map[string]QueueOptions{"a": {Weight: 1}, "b": {Weight: 9}},
			map[string]int{"a": much, "b": much},
			map[string]time.Duration{"a": 500 * time.Millisecond},
			map[string]float64{"a": 10, "b": 90},
		},
		"others are empty": {
			map[string]QueueOptions{"a": {Weight: 1}, "b": {Weight: 900}, "c": {Weight: 900}}, map[string]int{"a": much}, nil, map[string]float64{"a": 100},
		},
		"two of three": {
			map[string]QueueOptions{"a": {Weight: 2}, "b": {Weight: 1}, "c": {Weight: 900}}, map[string]int{"a": much, "b": much}, nil, map[string]float64{"a": 66, "b": 33},
		},
		"own permits": {
			map[string]QueueOptions{"a": {Weight: 9, Permits: 20}, "b": {}, "c": {}},
			map[string]int{"a": much, "b": much, "c": much},
			nil,
			map[string]float64{"a": 20, "b": 40, "c": 40},
		},
		"one permit": {
			map[string]QueueOptions{"a": {Weight: 1000}, "b": {Permits: 1}}, map[string]int{"a": much, "b": much}, nil, map[string]float64{"a": 99, "b": 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSharing(t, 100, c.queues)
			for queue, n := range c.waiting {
				s.waiting[queue] = n
			}
			for queue, d := range c.takes {
				s.takes[queue] = d
			}
			s.run(5*time.Second, nil)
			s.expect(c.want)
		})
	}
}

// TestLateQueueGetsItsShare: a queue whose jobs come when another holds every
// permit has its share as permits come free, and holds it.
func TestLateQueueGetsItsShare(t *testing.T) {
	t.Parallel()
	s := newSharing(t, 100, map[string]QueueOptions{"busy": {}, "late": {}})
	s.waiting["busy"] = 1 << 30
	s.takes["busy"] = 100 * time.Millisecond
	s.run(time.Second, nil)
	s.waiting["late"] = 1 << 30
	s.book.add(store.Lane{Queue: "late"})
	s.run(200*time.Millisecond, nil)
	s.held, s.moments = map[string]int{}, 0
	s.run(time.Second, nil)
	s.expect(map[string]float64{"busy": 50, "late": 50})
}

// TestSharingCostsNoClaims: a backlog beside a queue with a job now and then is
// claimed with as few claims as alone, and both at once.
func TestSharingCostsNoClaims(t *testing.T) {
	t.Parallel()
	claims := map[bool]int{}
	for _, beside := range []bool{false, true} {
		s := newSharing(t, 100, map[string]QueueOptions{"backlog": {}, "trickle": {}, "quiet": {}})
		s.waiting["backlog"] = 1 << 30
		s.run(time.Second, nil)
		before := s.claims
		s.run(5*time.Second, func() {
			if beside && s.now.UnixMilli()%3 == 0 && s.waiting["trickle"] == 0 {
				s.waiting["trickle"]++
				s.book.add(store.Lane{Queue: "trickle"})
			}
		})
		claims[beside] = s.claims - before
		if n := s.held["backlog"] + s.held["trickle"]; n < s.moments*95 {
			t.Errorf("%d of %d permits are in use on average", n/s.moments, s.permits)
		}
		if s.waiting["trickle"] > 1 {
			t.Errorf("%d jobs of the other queue wait", s.waiting["trickle"])
		}
	}
	if claims[true] > claims[false]*11/10 {
		t.Errorf("%d claims beside a queue with little to do, %d alone", claims[true], claims[false])
	}
}

// TestDivide: permits go one by one to whoever holds the fewest for its weight.
func TestDivide(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		portions portionHeap
		n        int
		want     string
	}{
		{portionHeap{{group: 0, most: 9, weight: 1}, {group: 1, most: 9, weight: 1}}, 5, "[3 2]"},
		{portionHeap{{group: 0, most: 9, weight: 1, held: 4}, {group: 1, most: 9, weight: 1}}, 5, "[1 4]"},
		{portionHeap{{group: 0, most: 9, weight: 1}, {group: 1, most: 9, weight: 3, held: 30}}, 5, "[5 0]"},
		{portionHeap{{group: 0, most: 2, weight: 1}, {group: 1, most: 1, weight: 3}}, 5, "[2 1]"},
		{portionHeap{{group: 0, most: 9, weight: 1}, {group: 1, most: 9, weight: 3}}, 8, "[2 6]"},
	} {
		given := make([]int, 2)
		divide(c.portions, c.n, given)
		if got := fmt.Sprint(given); got != c.want {
			t.Errorf("%+v of %d: %s, want %s", c.portions, c.n, got, c.want)
		}
	}
}
