package simplequeue

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue/internal/store"
)

const (
	testInterval = 5 * time.Second
	testLease    = testInterval * 5 / 2
)

// fakeLeaser notes the beats and answers as it is told.
type fakeLeaser struct {
	mu       sync.Mutex
	beats    [][]int64 // the claims of each statement
	at       []time.Time
	gone     map[int64]bool
	err      error
	tryErr   error
	silent   int // so many statements get no answer
	requests []store.CancelRequest
}

func (f *fakeLeaser) Beat(_ context.Context, limit time.Duration, ids, _ []int64) (map[int64]bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beats, f.at = append(f.beats, ids), append(f.at, time.Now())
	if f.silent > 0 {
		f.silent--
		time.Sleep(limit + limit/4)
		return nil, context.DeadlineExceeded
	}
	if f.err != nil {
		return nil, f.err
	}
	alive := map[int64]bool{}
	for _, id := range ids {
		alive[id] = !f.gone[id]
	}
	return alive, nil
}

func (f *fakeLeaser) CancelRequests(context.Context, time.Duration) ([]store.CancelRequest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests, f.err
}

func (f *fakeLeaser) TryBeat(context.Context, time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tryErr
}

func (f *fakeLeaser) count() int { return len(f.claims()) }

// claims are the claims of each statement so far.
func (f *fakeLeaser) claims() [][]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.beats)
}

// set changes what the fake answers.
func (f *fakeLeaser) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

var (
	errRefused = &pgconn.PgError{Severity: "ERROR", Code: "57014", Message: "canceling statement due to statement timeout"}
	errAway    = errors.New("connection refused")
)

// beating runs a test with a beater inside a bubble of fake time.
func beating(t *testing.T, test func(t *testing.T, b *beater, f *fakeLeaser)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLeaser{gone: map[int64]bool{}}
		b := newBeater(f, testInterval, testLease, slog.New(slog.DiscardHandler), (&health{}).loop("heartbeat", testInterval), &counters{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go b.run(ctx)
		test(t, b, f)
		cancel()
		synctest.Wait()
	})
}

func testClaim(id int64) *claim {
	return &claim{job: &Job{ID: uuid.New(), Queue: "q"}, id: id, nonce: id + 1000, claimedAt: time.Now(), verdict: make(chan error, 1)}
}

func testClaims(n int) []*claim {
	claims := make([]*claim, n)
	for i := range claims {
		claims[i] = testClaim(int64(i + 1))
	}
	return claims
}

// lost returns what ended a claim's context, nil if nothing has.
func (c *claim) lost() error {
	select {
	case err := <-c.verdict:
		return err
	default:
		return nil
	}
}

// Any number of long jobs costs one statement an interval.
func TestManyLongJobsCostOneStatementAnInterval(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		b.add(testClaims(500))
		time.Sleep(10*testInterval + time.Second)
		if n := f.count(); n != 10 {
			t.Errorf("%d statements in ten intervals, want 10", n)
		}
		for i, ids := range f.claims() {
			if len(ids) != 500 {
				t.Errorf("statement %d renews %d leases, want 500", i, len(ids))
			}
		}
	})
}

// A job shorter than an interval costs no heartbeat, however many of them run.
func TestShortJobsCostNoHeartbeat(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		for range 20 {
			claims := testClaims(100)
			b.add(claims)
			time.Sleep(testInterval - time.Second)
			for _, c := range claims {
				b.remove(c)
			}
		}
		if n := f.count(); n != 0 {
			t.Errorf("%d statements, want none", n)
		}
	})
}

// A claim that outlives its first interval is beaten before its lease is over,
// wherever in the beater's round it begins.
func TestEveryLeaseIsRenewedInTime(t *testing.T) {
	for _, offset := range []time.Duration{0, time.Second, 2500 * time.Millisecond, testInterval - time.Millisecond} {
		t.Run(offset.String(), func(t *testing.T) {
			beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
				time.Sleep(offset)
				claims := testClaims(1)
				b.add(claims)
				began := time.Now()
				time.Sleep(4 * testInterval)
				f.mu.Lock()
				defer f.mu.Unlock()
				last := began
				for _, at := range append(f.at, time.Now()) {
					if gap := at.Sub(last); gap >= testLease-testInterval/5 {
						t.Errorf("%v without a beat in a lease of %v", gap, testLease)
					}
					last = at
				}
			})
		})
	}
}

// A first beat that comes late and gets no answer, because its connection has
// died silently, is made again while the lease lasts.
func TestABeatWithoutAnAnswerIsRepeatedInTime(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		time.Sleep(testInterval + time.Millisecond) // it is beaten for in two intervals
		b.add(testClaims(1))
		began := time.Now()
		f.set(func() { f.silent = 1 })
		time.Sleep(3 * testInterval)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.at) < 2 {
			t.Fatalf("%d beats, want another after the first", len(f.at))
		}
		if first, second := f.at[0].Sub(began), f.at[1].Sub(began); second >= testLease {
			t.Errorf("beats %v and %v after the claim, want the second within the lease of %v", first, second, testLease)
		}
	})
}

// The owner of a claim that is no longer there is told, once, and beats no more
// for it; the others go on.
func TestLostLeaseIsToldOnce(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		claims := testClaims(3)
		b.add(claims)
		f.set(func() { f.gone[2] = true })
		time.Sleep(3*testInterval + time.Second)
		if err := claims[1].lost(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("the lost claim is told %v, want %v", err, ErrLeaseLost)
		}
		if err := errors.Join(claims[0].lost(), claims[1].lost(), claims[2].lost()); err != nil {
			t.Errorf("claims are told %v beyond that", err)
		}
		if n := len(f.claims()[2]); n != 2 {
			t.Errorf("later statements renew %d leases, want 2", n)
		}
		if n := b.stats.leasesLost.Load(); n != 1 {
			t.Errorf("%d leases counted as lost, want 1", n)
		}
	})
}

// A claim whose outcome is being written is not lost when a beat misses it.
func TestBeatThatCrossesASettleLosesNothing(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		claims := testClaims(1)
		b.add(claims)
		claims[0].settled.Store(true)
		f.set(func() { f.gone[1] = true })
		time.Sleep(testInterval + time.Second)
		if err := claims[0].lost(); err != nil || b.stats.leasesLost.Load() != 0 {
			t.Errorf("the settled claim is told %v, %d counted as lost, want nothing", err, b.stats.leasesLost.Load())
		}
	})
}

// While the database cannot be reached no lease ages, so none is given up,
// however long that lasts; the beater keeps trying, without a busy loop.
func TestUnreachableDatabaseLosesNoLease(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		claims := testClaims(10)
		b.add(claims)
		f.set(func() { f.err, f.tryErr = errAway, errAway })
		time.Sleep(20 * testLease)
		for _, c := range claims {
			if err := c.lost(); err != nil {
				t.Errorf("a claim is told %v", err)
			}
		}
		if n, most := f.count(), int(20*testLease/(testInterval/5))+1; n > most || n < most/2 {
			t.Errorf("%d tries in %v, want about %d: one each fifth of an interval", n, 20*testLease, most)
		}
		if p := b.health.problem(time.Now(), testInterval); p == "" {
			t.Error("health shows no problem")
		}
		f.set(func() { f.err, f.tryErr = nil, nil })
		time.Sleep(testInterval)
		if p := b.health.problem(time.Now(), testInterval); p != "" {
			t.Errorf("after the return health shows %q", p)
		}
	})
}

// While nobody's beats can be written, because somebody has locked the tables, no
// lease ages: none is given up, however the beats fail.
func TestLockedTablesLoseNoLease(t *testing.T) {
	for name, err := range map[string]error{
		"statement_timeout": errRefused, "lock_timeout": refused("55P03"), "no answer": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
				claims := testClaims(1)
				b.add(claims)
				f.set(func() { f.err, f.tryErr = err, err })
				time.Sleep(5 * testLease)
				if err := claims[0].lost(); err != nil {
					t.Errorf("the claim is told %v, want nothing", err)
				}
			})
		})
	}
}

// A server that nobody can write to, a standby after a failover or one with a
// full disk, ages no lease either.
func TestUnwritableServerLosesNoLease(t *testing.T) {
	for _, code := range []string{"25006", "0A000", "53100"} {
		t.Run(code, func(t *testing.T) {
			beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
				claims := testClaims(1)
				b.add(claims)
				f.set(func() { f.err = refused(code) })
				time.Sleep(5 * testLease)
				if err := claims[0].lost(); err != nil {
					t.Errorf("the claim is told %v, want nothing", err)
				}
			})
		})
	}
}

// A beat that gets no answer from a server that answers others was refused too:
// it may have waited for a lock.
func TestUnansweredHeartbeatsGiveUpTheLeasesOfAServerThatAnswersOthers(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		claims := testClaims(1)
		b.add(claims)
		f.set(func() { f.err = context.DeadlineExceeded })
		time.Sleep(testInterval + testLease + 2*time.Second)
		if err := claims[0].lost(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("the claim is told %v, want %v", err, ErrLeaseLost)
		}
	})
}

// A server that answers beats with errors only is one that others can reach:
// after a lease the claims are given up, the younger ones later.
func TestRefusedHeartbeatsGiveUpTheLeases(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		old := testClaims(2)
		b.add(old)
		f.set(func() { f.err = errRefused })
		time.Sleep(testInterval + testLease - time.Second)
		young := testClaim(100)
		b.add([]*claim{young})
		if err := old[0].lost(); err != nil {
			t.Errorf("told %v before a lease is over", err)
		}
		if p := b.health.problem(time.Now(), testInterval); p == "" {
			t.Error("health shows no problem")
		}
		time.Sleep(3 * time.Second)
		for _, c := range old {
			if err := c.lost(); !errors.Is(err, ErrLeaseLost) {
				t.Errorf("after a lease of refusals the claim is told %v, want %v", err, ErrLeaseLost)
			}
		}
		if err := young.lost(); err != nil {
			t.Errorf("a claim younger than a lease is told %v", err)
		}
	})
}

// Two claims of one id can meet in a process when a failover has set the ids
// back. The older one is lost; the newer one lives, whichever is removed.
func TestClaimOfAReusedIDLosesTheOlderOne(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		old := testClaim(7)
		b.add([]*claim{old})
		young := testClaim(7)
		young.nonce++
		b.add([]*claim{young})
		if err := old.lost(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("the older claim is told %v, want %v", err, ErrLeaseLost)
		}
		b.remove(old)
		time.Sleep(testInterval + time.Second)
		if err := young.lost(); err != nil || b.count() != 1 || f.count() != 1 {
			t.Errorf("the newer claim: told %v, %d live, %d beats, want nothing, 1, 1", err, b.count(), f.count())
		}
	})
}

// A request to cancel reaches the claim that it names by both parts of the
// fence, and no other.
func TestCancelRequestReachesItsClaimOnly(t *testing.T) {
	beating(t, func(t *testing.T, b *beater, f *fakeLeaser) {
		claims := testClaims(4)
		b.add(claims)
		f.set(func() {
			f.requests = []store.CancelRequest{
				{ClaimID: 1, Nonce: claims[0].nonce, Reason: "enough"},
				{ClaimID: 2, Nonce: claims[1].nonce + 1},
				{ClaimID: 99, Nonce: claims[2].nonce},
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		go b.watchCancels(ctx, f, time.Second, make(chan struct{}, 1), (&health{}).loop("cancel", time.Second))
		time.Sleep(3 * time.Second)
		cancel()
		if err := claims[0].lost(); !errors.Is(err, ErrCancelled) {
			t.Errorf("the claim named is told %v, want %v", err, ErrCancelled)
		}
		for _, c := range claims[1:] {
			if err := c.lost(); err != nil {
				t.Errorf("claim %d is told %v, want nothing", c.id, err)
			}
		}
	})
}
