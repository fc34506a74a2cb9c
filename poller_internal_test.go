package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/semaphore"

	"github.com/simplequeue/simplequeue/internal/store"
)

// fakeClaimer is a store in memory. Its functions may be nil.
type fakeClaimer struct {
	mu      sync.Mutex
	lanes   []store.Lane
	claim   func(store.ClaimRequest) ([]store.Claimed, error)
	parked  func(store.ClaimRequest, []string) ([]store.Claimed, error)
	adopt   func([]int64) ([]store.Claimed, error)
	heed    func([]string) (bool, error)
	tryBeat func() error
	payload func(limit time.Duration) (map[[16]byte]store.Payload, error)
	claims  int // calls
	nextID  int64
	claimed int
}

func (f *fakeClaimer) Claim(_ context.Context, _ time.Duration, r store.ClaimRequest) ([]store.Claimed, error) {
	time.Sleep(time.Millisecond) // of the bubble's clock
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims++
	if f.claim == nil {
		return nil, nil
	}
	return f.claim(r)
}

func (f *fakeClaimer) ClaimParked(_ context.Context, _ time.Duration, r store.ClaimRequest, kinds []string) ([]store.Claimed, error) {
	time.Sleep(time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parked == nil {
		return nil, nil
	}
	return f.parked(r, kinds)
}

func (f *fakeClaimer) Adopt(_ context.Context, _ time.Duration, _ uuid.UUID, nonces []int64) ([]store.Claimed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.adopt == nil {
		return nil, nil
	}
	return f.adopt(nonces)
}

func (f *fakeClaimer) TryBeat(context.Context, time.Duration) error {
	if f.tryBeat == nil {
		return nil
	}
	return f.tryBeat()
}

func (f *fakeClaimer) Payloads(_ context.Context, limit time.Duration, _ [][16]byte) (map[[16]byte]store.Payload, error) {
	if f.payload == nil {
		return nil, nil
	}
	return f.payload(limit)
}

func (f *fakeClaimer) Heads(context.Context, time.Duration, []store.Lane) (store.Heads, error) {
	panic("a queue without aging was asked for its first jobs")
}

func (f *fakeClaimer) HeedPauses(_ context.Context, _ time.Duration, _ uuid.UUID, queues []string) (bool, error) {
	if f.heed == nil {
		return true, nil
	}
	return f.heed(queues)
}

func (f *fakeClaimer) Lanes(_ context.Context, _ time.Duration, _ int64, add func(store.Lane)) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lanes {
		add(l)
	}
	return 1, nil
}

// job makes a claimed row.
func (f *fakeClaimer) job(queue, kind string, lane int16) store.Claimed {
	f.nextID++
	f.claimed++
	return store.Claimed{ClaimID: f.nextID, ID: uuid.New(), Seq: f.nextID, Queue: queue, Kind: kind, Lane: lane, Attempt: 1, MaxAttempts: 3}
}

// fill answers a claim as a table full of jobs would, or one with some.
func (f *fakeClaimer) fill(r store.ClaimRequest, full bool) (jobs []store.Claimed) {
	for g, budget := range r.Budget {
		left := int(budget)
		if !full {
			left = rand.IntN(left + 1)
		}
		for ; left > 0 && len(jobs) < r.Limit; left-- {
			at := int(r.First[g]) - 1 + rand.IntN(int(r.Last[g]-r.First[g])+1)
			jobs = append(jobs, f.job(r.Queue[at], "", r.Lane[at]))
		}
	}
	return jobs
}

// newTestPoller returns a poller on a fake, whose jobs run as dispatch says.
func newTestPoller(t *testing.T, f *fakeClaimer, opts Options) *poller {
	t.Helper()
	opts, err := opts.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	routes, err := newRoutes(&opts)
	if err != nil {
		t.Fatal(err)
	}
	h := &health{}
	return &poller{
		db: f, worker: uuid.New(), leaseMS: 1000, threshold: int64(opts.ClaimThreshold), every: opts.PollInterval,
		global: semaphore.NewWeighted(int64(opts.GlobalPermits)), routes: routes, book: newLaneBook(routes, opts.PollInterval), memory: newPayloadMemory(opts.PayloadMemory, new(atomic.Int64)),
		log: slog.New(slog.NewTextHandler(io.Discard, nil)), stats: &counters{},
		health: h.loop("poller", opts.PollInterval), poke: make(chan struct{}, 1), hold: func([]*claim) {},
	}
}

// runFor runs the poller for a time of the bubble's clock.
func runFor(p *poller, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	p.run(ctx, context.Background())
}

// endForTest ends a claim as the runner does.
func (p *poller) endForTest(c *claim) {
	c.route.window.leave(true)
	c.route.inFlight.Add(-1)
	p.global.Release(1)
	if c.suspect {
		p.suspects.Add(-1)
	}
	p.freed()
}

// TestClaimsAskForFreePermitsOnly: at the time of each claim its limit is at
// most the free global permits, and what it may take of a queue at most that
// queue's free permits.
func TestClaimsAskForFreePermitsOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const global = 20
		permits := map[string]int{"a": 1, "b": 3, "c": 10, "mux": 4}
		f := &fakeClaimer{}
		opts := Options{GlobalPermits: global, PollInterval: 100 * time.Millisecond, Queues: map[string]QueueOptions{}}
		nothing := func(context.Context, *Job) error { return nil }
		for queue, n := range permits {
			opts.Queues[queue] = QueueOptions{Permits: n}
			f.lanes = append(f.lanes, store.Lane{Queue: queue}, store.Lane{Queue: queue, Priority: 9})
		}
		mux := NewMux("mux").HandleFunc("k1", nothing).HandleFunc("k2", nothing).HandleFunc("k3", nothing)
		opts.Handlers = []Handler{HandlerFunc("a", nothing), HandlerFunc("b", nothing), HandlerFunc("c", nothing), mux}
		p := newTestPoller(t, f, opts)

		running, inQueue, most := 0, map[string]int{}, 0
		check := func(r store.ClaimRequest, asked map[string]int) {
			if r.Limit < 1 || r.Limit > global-running {
				t.Errorf("claim of up to %d jobs, %d permits are free", r.Limit, global-running)
			}
			for queue, n := range asked {
				if n > permits[queue]-inQueue[queue] {
					t.Errorf("claim of up to %d jobs of %s, %d permits are free", n, queue, permits[queue]-inQueue[queue])
				}
			}
		}
		take := func(jobs []store.Claimed) []store.Claimed {
			for _, j := range jobs {
				running++
				inQueue[j.Queue]++
			}
			most = max(most, running)
			return jobs
		}
		f.claim = func(r store.ClaimRequest) ([]store.Claimed, error) {
			asked := map[string]int{}
			for g := range r.Budget {
				seen := map[string]bool{}
				for at := r.First[g] - 1; at < r.Last[g]; at++ {
					if queue := r.Queue[at]; !seen[queue] {
						seen[queue] = true
						asked[queue] += int(r.Budget[g])
					}
				}
			}
			check(r, asked)
			return take(f.fill(r, rand.IntN(2) == 0)), nil
		}
		f.parked = func(r store.ClaimRequest, kinds []string) (jobs []store.Claimed, _ error) {
			asked := map[string]int{}
			for i, queue := range r.Queue {
				asked[queue] += int(r.Budget[i])
				if r.AnyKind[i] {
					continue
				}
				for n := rand.IntN(int(r.Budget[i]) + 1); n > 0 && len(jobs) < r.Limit; n-- {
					jobs = append(jobs, f.job(queue, kinds[i], store.FrontLane))
				}
			}
			check(r, asked)
			return take(jobs), nil
		}
		p.dispatch = func(claims []*claim) {
			for _, c := range claims {
				time.AfterFunc(time.Duration(rand.IntN(40))*time.Millisecond, func() {
					// The count goes down before the permits are free.
					f.mu.Lock()
					running--
					inQueue[c.job.Queue]--
					f.mu.Unlock()
					p.endForTest(c)
				})
			}
		}
		runFor(p, 20*time.Second)
		if f.claimed < 2000 {
			t.Errorf("%d jobs claimed in 20 s, want thousands: permits leak or wake-ups get lost", f.claimed)
		}
		if most < 15 {
			t.Errorf("%d jobs at once, want nearly all of 18", most)
		}
		time.Sleep(time.Second)
		if !p.global.TryAcquire(global) {
			t.Error("global permits leaked")
		}
	})
}

// TestFailingClaimsBackOff: while claims fail the poller tries again at growing
// intervals, tells so, and claims soon after they work again, without waiting
// for the poll interval.
func TestFailingClaimsBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeClaimer{lanes: []store.Lane{{Queue: "a"}}}
		p := newTestPoller(t, f, Options{
			PollInterval: time.Hour, Handlers: []Handler{HandlerFunc("a", func(context.Context, *Job) error { return nil })},
		})
		began := time.Now()
		const outage = time.Minute
		healed := time.Duration(0)
		f.claim = func(r store.ClaimRequest) ([]store.Claimed, error) {
			if time.Since(began) < time.Second {
				return nil, nil // the lane is empty
			}
			if time.Since(began) < outage {
				return nil, &pgconn.PgError{Severity: "ERROR", Code: "57P03"}
			}
			if healed == 0 {
				healed = time.Since(began) - outage
				return []store.Claimed{f.job("a", "", 0)}, nil
			}
			return nil, nil
		}
		p.dispatch = func(claims []*claim) { p.endForTest(claims[0]) }
		time.AfterFunc(5*time.Second, func() { p.hint(nil) })
		time.AfterFunc(50*time.Second, func() {
			if problem := p.health.problem(time.Now(), time.Second); !strings.Contains(problem, "poller fails since") {
				t.Errorf("health during the outage: %q", problem)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.claims < 10 || f.claims > 200 {
				t.Errorf("%d claims tried in 50 s", f.claims)
			}
		})
		runFor(p, 2*time.Minute)
		if healed == 0 || healed > 5*time.Second {
			t.Errorf("first claim %v after the outage, want up to 5 s", healed)
		}
		if problem := p.health.problem(time.Now(), time.Hour); problem != "" {
			t.Errorf("health after the outage: %q", problem)
		}
	})
}

// TestClaimsInDoubtAreAdopted: a claim whose answer got lost is looked up by its
// nonce and its jobs run; one that the server has refused is not.
func TestClaimsInDoubtAreAdopted(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]error{"lost": io.ErrUnexpectedEOF, "refused": &pgconn.PgError{Severity: "ERROR", Code: "57014"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fakeClaimer{lanes: []store.Lane{{Queue: "a"}}}
				p := newTestPoller(t, f, Options{
					GlobalPermits: 5, Handlers: []Handler{HandlerFunc("a", func(context.Context, *Job) error { return nil })},
				})
				var nonces, asked, ran []int64
				f.claim = func(r store.ClaimRequest) ([]store.Claimed, error) {
					if nonces = append(nonces, r.Nonce); len(nonces) == 1 {
						return nil, lost
					}
					return nil, nil
				}
				f.adopt = func(n []int64) (jobs []store.Claimed, err error) {
					asked = append(asked, n...)
					if len(asked) == 1 {
						return nil, errors.New("still away")
					}
					for range 3 {
						j := f.job("a", "", 0)
						j.Nonce = n[0]
						jobs = append(jobs, j)
					}
					return jobs, nil
				}
				p.dispatch = func(claims []*claim) {
					for _, c := range claims {
						ran = append(ran, c.nonce)
						p.endForTest(c)
					}
				}
				runFor(p, 20*time.Second)
				if name == "refused" {
					if len(asked) != 0 {
						t.Errorf("asked for nonces %v of a refused claim", asked)
					}
					return
				}
				if want := []int64{nonces[0], nonces[0]}; !slices.Equal(asked, want) {
					t.Errorf("asked for nonces %v, want %v", asked, want)
				}
				if want := slices.Repeat(nonces[:1], 3); !slices.Equal(ran, want) {
					t.Errorf("ran jobs of nonces %v, want %v", ran, want)
				}
				if !p.global.TryAcquire(5) {
					t.Error("permits leaked")
				}
			})
		})
	}
}

// TestClaimsInDoubtThatCannotBeLookedFor: where the looks fail although the
// database is there, the doubt ends with the leases and claims go on; while the
// database is away, for however long, no lease ages, and its jobs are adopted.
func TestClaimsInDoubtThatCannotBeLookedFor(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away %v", away), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fakeClaimer{lanes: []store.Lane{{Queue: "a"}}}
				p := newTestPoller(t, f, Options{Handlers: []Handler{HandlerFunc("a", func(context.Context, *Job) error { return nil })}})
				p.leaseMS = int(testLease.Milliseconds())
				began := time.Now()
				again := time.Duration(0) // when claims went on
				f.claim = func(store.ClaimRequest) ([]store.Claimed, error) {
					if f.claims == 1 {
						return nil, io.ErrUnexpectedEOF
					}
					if again == 0 {
						again = time.Since(began)
					}
					return nil, nil
				}
				const outage = time.Minute
				f.tryBeat = func() error {
					if away && time.Since(began) < outage {
						return errAway
					}
					return nil
				}
				f.adopt = func(nonces []int64) ([]store.Claimed, error) {
					if !away || time.Since(began) < outage {
						return nil, errAway
					}
					j := f.job("a", "", 0)
					j.Nonce = nonces[0]
					return []store.Claimed{j}, nil
				}
				adopted := 0
				p.dispatch = func(claims []*claim) {
					for _, c := range claims {
						adopted++
						p.endForTest(c)
					}
				}
				runFor(p, 2*time.Minute)
				switch {
				case away && adopted != 1:
					t.Errorf("%d jobs adopted after the outage, want 1", adopted)
				case !away && (again < testLease || again > 30*time.Second):
					t.Errorf("claims went on after %v, want that soon after a lease of %v", again, testLease)
				}
			})
		})
	}
}

// TestAPauseThatWasNotNotedEnds: a queue is claimed from again after a pause that
// ended before it could be noted, because a claim was in doubt or the database did
// not take the note; and what is noted in the end is what is so.
func TestAPauseThatWasNotNotedEnds(t *testing.T) {
	t.Parallel()
	for _, obstacle := range []string{"a claim in doubt", "an error"} {
		t.Run(obstacle, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fakeClaimer{}
				p := newTestPoller(t, f, Options{Handlers: []Handler{HandlerFunc("*", func(context.Context, *Job) error { return nil })}})
				paused := func(queues ...string) (lanes []store.Lane) {
					for _, queue := range []string{"a", "b"} {
						lanes = append(lanes, store.Lane{Queue: queue})
					}
					for _, queue := range queues {
						lanes = append(lanes, store.Lane{Queue: queue, Priority: store.PausedLane})
					}
					return lanes
				}
				began := time.Now()
				since := func() time.Duration { return time.Since(began) }
				var noted []string
				f.heed = func(queues []string) (bool, error) {
					noted = queues
					if s := since(); obstacle == "an error" && s > 10*time.Second && s < 20*time.Second {
						return false, errors.New("not now") // it may have been written
					}
					return true, nil
				}
				last := map[string]time.Duration{}
				f.claim = func(r store.ClaimRequest) ([]store.Claimed, error) {
					for _, queue := range r.Queue {
						last[queue] = since()
					}
					if s := since(); obstacle == "a claim in doubt" && s > 8*time.Second && s < 10*time.Second {
						return nil, io.ErrUnexpectedEOF
					}
					return nil, nil
				}
				f.lanes = paused("b")
				set := func(at time.Duration, queues ...string) {
					time.AfterFunc(at*time.Second, func() {
						f.mu.Lock()
						f.lanes = paused(queues...)
						f.mu.Unlock()
						p.lookForPauses()
					})
				}
				set(11, "a", "b")
				set(14) // resumed before anything could be noted
				set(30, "b")
				runFor(p, 40*time.Second)
				if since := last["a"]; since < 38*time.Second {
					t.Errorf("the queue that was resumed was last claimed from at %v of 40 s", since)
				}
				if since := last["b"]; since < 25*time.Second || since > 31*time.Second {
					t.Errorf("the queue that was resumed and is paused again was last claimed from at %v", since)
				}
				if !slices.Equal(noted, []string{"b"}) || !p.pauses.noted {
					t.Errorf("noted %v, %v, want b", noted, p.pauses.noted)
				}
			})
		})
	}
}

// asksForSuspect reports whether a claim takes a suspect if there is one.
func asksForSuspect(r store.ClaimRequest) bool {
	return slices.Contains(r.Lane, store.SuspectLane) || slices.Contains(r.Suspect, true)
}

// TestOneSuspectAtATime: while one suspect runs, and while a claim is in doubt
// that may hold one, no claim takes another, from its lane or parked.
func TestOneSuspectAtATime(t *testing.T) {
	t.Parallel()
	for _, inDoubt := range []string{"", "claim", "parked"} {
		t.Run("in doubt "+inDoubt, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fakeClaimer{lanes: []store.Lane{{Queue: "a"}}}
				p := newTestPoller(t, f, Options{
					PollInterval: 100 * time.Millisecond,
					Handlers:     []Handler{NewMux("a").HandleFunc("k", func(context.Context, *Job) error { return nil })},
				})
				running, ran, lost := 0, 0, int64(0) // in the database; the nonce of the claim in doubt
				take := func(what string, r store.ClaimRequest) (jobs []store.Claimed, err error) {
					if !asksForSuspect(r) {
						return nil, nil
					}
					if ran >= 3 && lost == 0 && inDoubt != "" && what != inDoubt {
						return nil, nil // the other one is to have the suspect that is in doubt
					}
					if running++; running > 1 {
						t.Errorf("%s takes a suspect while there is one", what)
					}
					if what == inDoubt && ran >= 3 && lost == 0 {
						lost = r.Nonce
						return nil, io.ErrUnexpectedEOF
					}
					return []store.Claimed{f.job("a", "k", store.SuspectLane)}, nil
				}
				f.claim = func(r store.ClaimRequest) ([]store.Claimed, error) { return take("claim", r) }
				f.parked = func(r store.ClaimRequest, _ []string) ([]store.Claimed, error) { return take("parked", r) }
				looks := 0
				f.adopt = func(nonces []int64) ([]store.Claimed, error) {
					if looks++; looks < 5 {
						return nil, nil // it has not committed yet
					}
					j := f.job("a", "k", store.SuspectLane)
					j.Nonce = nonces[0]
					return []store.Claimed{j}, nil
				}
				p.dispatch = func(claims []*claim) {
					for _, c := range claims {
						time.AfterFunc(50*time.Millisecond, func() {
							f.mu.Lock()
							running--
							ran++
							f.mu.Unlock()
							p.endForTest(c)
						})
					}
				}
				runFor(p, 20*time.Second)
				if ran < 50 || inDoubt != "" && looks != 5 {
					t.Errorf("%d suspects ran, %d looks for a claim in doubt", ran, looks)
				}
			})
		})
	}
}

// TestAClaimIsHeldBeforeItsPayloadsCome: the leases of a claim are kept from the
// moment its answer is there, and its jobs do not wait for long for payloads that
// do not come.
func TestAClaimIsHeldBeforeItsPayloadsCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeClaimer{lanes: []store.Lane{{Queue: "a"}}}
		p := newTestPoller(t, f, Options{Handlers: []Handler{HandlerFunc("a", func(context.Context, *Job) error { return nil })}})
		f.claim = func(store.ClaimRequest) ([]store.Claimed, error) {
			if f.claimed > 0 {
				return nil, nil
			}
			large := f.job("a", "", 0)
			large.PayloadBytes = 5000
			return []store.Claimed{f.job("a", "", 0), large}, nil
		}
		held, asked, began := 0, 0, time.Time{}
		f.payload = func(limit time.Duration) (map[[16]byte]store.Payload, error) {
			if asked, began = asked+1, time.Now(); held != 2 {
				t.Errorf("%d claims are held while their payloads are fetched, want 2", held)
			}
			time.Sleep(limit + limit/4)
			return nil, context.DeadlineExceeded
		}
		p.hold = func(claims []*claim) { held += len(claims) }
		p.dispatch = func(claims []*claim) {
			if waited := time.Since(began); waited > 2*time.Second {
				t.Errorf("%d jobs waited %v for payloads", len(claims), waited)
			}
			for _, c := range claims {
				p.endForTest(c)
			}
		}
		runFor(p, 20*time.Second)
		if asked != 1 || held != 2 {
			t.Errorf("payloads asked for %d times, %d claims held, want 1 and 2", asked, held)
		}
	})
}

// TestWakeUpCostsFewClaims: an insert that wakes an idle process makes it claim
// up to three times, and start the job at once.
func TestWakeUpCostsFewClaims(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeClaimer{}
		for i := range 50 {
			f.lanes = append(f.lanes, store.Lane{Queue: fmt.Sprint(i)})
		}
		p := newTestPoller(t, f, Options{
			PollInterval: time.Hour, Handlers: []Handler{HandlerFunc("*", func(context.Context, *Job) error { return nil })},
		})
		waiting := []string{}
		f.claim = func(r store.ClaimRequest) (jobs []store.Claimed, _ error) {
			waiting = slices.DeleteFunc(waiting, func(queue string) bool {
				if slices.Contains(r.Queue, queue) {
					jobs = append(jobs, f.job(queue, "", 0))
					return true
				}
				return false
			})
			return jobs, nil
		}
		var started time.Time
		p.dispatch = func(claims []*claim) {
			f.mu.Lock()
			started = time.Now()
			f.mu.Unlock()
			for _, c := range claims {
				p.endForTest(c)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.run(ctx, ctx) }()
		time.Sleep(10 * time.Second)
		const inserts = 50
		f.mu.Lock()
		before := f.claims
		f.mu.Unlock()
		for i := range inserts {
			l := store.Lane{Queue: fmt.Sprint(i)}
			f.mu.Lock()
			waiting = append(waiting, l.Queue)
			f.mu.Unlock()
			inserted := time.Now()
			p.hint([]store.Lane{l})
			time.Sleep(time.Second)
			f.mu.Lock()
			took := started.Sub(inserted)
			f.mu.Unlock()
			if took < 0 || took > 20*time.Millisecond {
				t.Errorf("job of queue %d started after %v", i, took)
			}
		}
		cancel()
		<-done
		if n := f.claims - before; n > 3*inserts {
			t.Errorf("%d claims for %d inserts", n, inserts)
		}
	})
}

// TestSaturationIsHealthy: long jobs that hold every permit are no problem.
func TestSaturationIsHealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeClaimer{lanes: []store.Lane{{Queue: "a"}}}
		p := newTestPoller(t, f, Options{
			GlobalPermits: 2, Handlers: []Handler{HandlerFunc("a", func(context.Context, *Job) error { return nil })},
		})
		f.claim = func(r store.ClaimRequest) ([]store.Claimed, error) { return f.fill(r, true), nil }
		p.dispatch = func([]*claim) {} // they run for ever
		for i := range 20 {
			time.AfterFunc(time.Duration(i)*10*time.Second, func() {
				if problem := p.health.problem(time.Now(), time.Second); problem != "" {
					t.Errorf("after %d s: %s", i*10, problem)
				}
			})
		}
		runFor(p, 200*time.Second)
		if f.claimed != 2 || f.claims != 1 {
			t.Errorf("%d jobs by %d claims, want 2 by 1", f.claimed, f.claims)
		}
	})
}

// TestPromoterHeedsTheEarliestHint: of several hints that come while it is
// busy, the earliest counts.
func TestPromoterHeedsTheEarliestHint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		looks := make(chan time.Time, 100)
		db := promoterFunc(func() (store.Promotion, error) {
			looks <- time.Now()
			time.Sleep(10 * time.Millisecond)
			return store.Promotion{Next: time.Hour}, nil
		})
		p := &promoter{
			db: db, every: time.Hour, soon: make(chan time.Duration, 1), wake: func([]store.Lane, int) {},
			log: slog.New(slog.NewTextHandler(io.Discard, nil)), health: (&health{}).loop("promoter", time.Hour),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.run(ctx) }()
		first := <-looks
		p.hint(30 * time.Minute)
		p.hint(50 * time.Millisecond)
		p.hint(20 * time.Minute)
		if second := <-looks; second.Sub(first) > 100*time.Millisecond {
			t.Errorf("looked again after %v, want about 60ms", second.Sub(first))
		}
		cancel()
		<-done
	})
}

type promoterFunc func() (store.Promotion, error)

func (f promoterFunc) Promote(context.Context, time.Duration, *int64, int) (store.Promotion, error) {
	return f()
}
