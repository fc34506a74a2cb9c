package simplequeue

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// fakeSettler is a database that holds claims and writes outcomes of them, but
// for what it is told to refuse.
type fakeSettler struct {
	mu      sync.Mutex
	running map[int64]bool
	written map[int64]int               // how often each claim was settled
	refuse  func(s tried) (err error)   // before it is written
	answer  func(calls int) (err error) // after it is written
	locked  map[int64]bool              // claims that Look finds locked
	calls   int
	made    int   // calls of MakePartitions
	makeErr error // its answer
}

// tried is a batch that is to be written.
type tried struct {
	ids     []int64
	aside   bool
	texts   []string
	results int // bytes
}

func (f *fakeSettler) Tx(_ context.Context, _ time.Duration, steps ...store.Step) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	var all tried
	for _, s := range steps {
		if s.Statement == store.LockClaims || s.Statement == store.ForgetLeases(&store.Settle{}).Statement {
			continue
		}
		all.ids = append(all.ids, s.Args[0].([]int64)...)
		all.aside = all.aside || s.Statement == store.SettleAside(&store.Settle{}).Statement
		for _, a := range s.Args {
			if texts, ok := a.([]*string); ok {
				for _, text := range texts {
					all.texts = append(all.texts, deref(text))
				}
			}
			withResults := s.Statement == janitor.ArchiveResults(&store.Settle{}).Statement ||
				s.Statement == store.SettleResultsAside(&store.Settle{}).Statement
			if results, ok := a.([]string); ok && withResults {
				all.results += len(strings.Join(results, ""))
			}
		}
	}
	if f.refuse != nil {
		if err := f.refuse(all); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if s.Scan == nil {
			continue
		}
		for _, id := range s.Args[0].([]int64) {
			if f.running[id] {
				delete(f.running, id)
				f.written[id]++
				if err := s.Scan(fakeRow{id: id}); err != nil {
					return err
				}
			}
		}
	}
	if f.answer != nil {
		return f.answer(f.calls)
	}
	return nil
}

func (f *fakeSettler) Look(_ context.Context, _ time.Duration, claims []store.Claim) (map[int64]store.Sight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[int64]store.Sight{}
	for _, c := range claims {
		if seen[c.ID] = store.ClaimFree; f.locked[c.ID] {
			seen[c.ID] = store.ClaimLocked
		}
	}
	return seen, nil
}

// count is the number of transactions so far.
func (f *fakeSettler) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fakeSettler) MakePartitions(context.Context, []int64, []int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made++
	return f.makeErr
}

// fakeRow is a row with the id of a claim.
type fakeRow struct {
	pgx.Rows
	id int64
}

func (r fakeRow) Scan(dest ...any) error { *dest[0].(*int64) = r.id; return nil }

// completing runs a test with a completer, and n claims that it has accepted as
// failed for good, inside a bubble of fake time.
func completing(t *testing.T, n int, f *fakeSettler, test func(t *testing.T, c *completer)) {
	t.Helper()
	completingClaims(t, testClaims(n), f, test)
}

func completingClaims(t *testing.T, claims []*claim, f *fakeSettler, test func(t *testing.T, c *completer)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		stats := &counters{}
		h := &health{}
		f.running, f.written = map[int64]bool{}, map[int64]int{}
		c := &completer{
			db: f, partitions: f, in: make(chan outcomeOf, len(claims)), finish: make(chan struct{}), log: log, stats: stats,
			beater: newBeater(&fakeLeaser{}, testInterval, testLease, log, h.loop("heartbeat", testInterval), stats),
			health: h.loop("completer", 0), written: func([]outcomeOf) {},
		}
		c.beater.add(claims)
		for _, claim := range claims {
			claim.route = &queueRoute{}
			f.running[claim.id] = true
			v := verdict{action: actFail, state: StateFailed, text: "boom"}
			if !c.accept(t.Context(), outcomeOf{claim: claim, verdict: v}) || c.accept(t.Context(), outcomeOf{claim: claim, verdict: v}) {
				t.Error("an outcome is to be accepted once")
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.run(ctx)
		test(t, c)
		cancel()
		synctest.Wait()
	})
}

// check verifies that all claims but the given ones were written once.
func (f *fakeSettler) check(t *testing.T, c *completer, n int, missing ...int64) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := int64(1); id <= int64(n); id++ {
		want := 1
		if slices.Contains(missing, id) {
			want = 0
		}
		if f.written[id] != want {
			t.Errorf("outcome of claim %d written %d times, want %d", id, f.written[id], want)
		}
	}
	if got := c.stats.dead.Load(); got != int64(n-len(missing)) {
		t.Errorf("%d outcomes counted, want %d", got, n-len(missing))
	}
	if got := c.beater.count(); got != 0 {
		t.Errorf("%d leases still kept, want none", got)
	}
}

func refused(code string) error {
	return &pgconn.PgError{Severity: "ERROR", Code: code, Message: "refused"}
}

// After a failover to a standby that missed the last claims their ids are given
// again: an outcome from before it and one from after it may meet. They are
// written one after the other, and one is lost.
func TestOutcomesOfOneClaimIDAreWrittenApart(t *testing.T) {
	claims := testClaims(5)
	claims[3].id, claims[4].id = 2, 2
	f := &fakeSettler{refuse: func(s tried) error {
		if slices.Sort(s.ids); len(slices.Compact(s.ids)) != len(s.ids) {
			t.Errorf("claims %d in one batch", s.ids)
		}
		return nil
	}}
	completingClaims(t, claims, f, func(t *testing.T, c *completer) {
		synctest.Wait()
		f.check(t, c, 3)
		if lost := c.stats.leasesLost.Load(); lost != 2 {
			t.Errorf("%d leases lost, want 2", lost)
		}
	})
}

// One outcome that the database refuses holds up none of its neighbours: the
// batch is halved until it stands alone, and then goes in without its text.
func TestRefusedOutcomeIsFoundByHalvingTheBatch(t *testing.T) {
	f := &fakeSettler{refuse: func(s tried) error {
		if i := slices.Index(s.ids, 317); i >= 0 && slices.Contains(s.texts, "boom") {
			return refused("22P05")
		}
		return nil
	}}
	completing(t, 500, f, func(t *testing.T, c *completer) {
		time.Sleep(time.Second)
		f.check(t, c, 500)
		if n := f.count(); n > 30 {
			t.Errorf("%d transactions for one bad outcome in 500, want about two for each halving", n)
		}
	})
}

// An outcome that is refused even so is left to the reaper: it blocks nothing,
// and its lease is no longer kept.
func TestHopelessOutcomeIsLeftToTheReaper(t *testing.T) {
	f := &fakeSettler{refuse: func(s tried) error {
		if slices.Contains(s.ids, 3) {
			return refused("22P05")
		}
		return nil
	}}
	completing(t, 8, f, func(t *testing.T, c *completer) {
		time.Sleep(time.Second)
		f.check(t, c, 8, 3)
	})
}

// A refused outcome whose second try meets an outage is not given up for it.
func TestRefusedOutcomeSurvivesAnOutage(t *testing.T) {
	until := time.Time{}
	f := &fakeSettler{}
	f.refuse = func(s tried) error {
		switch {
		case slices.Contains(s.texts, "boom") && slices.Contains(s.ids, 2):
			until = time.Now().Add(time.Minute)
			return refused("22P05")
		case time.Now().Before(until):
			return errAway
		}
		return nil
	}
	completing(t, 2, f, func(t *testing.T, c *completer) {
		time.Sleep(10 * time.Minute)
		f.check(t, c, 2)
	})
}

// While the database is away outcomes are kept, tried again at a capped pace,
// and written when it is back, within seconds.
func TestOutcomesAreKeptWhileTheDatabaseIsAway(t *testing.T) {
	for name, err := range map[string]error{
		"unreachable": errAway, "shutting down": refused("57P01"), "too many connections": refused("53300"),
		"read only": refused("25006"), "in recovery": refused("0A000"), "locked": refused("55P03"), "deadlock": refused("40P01"),
	} {
		t.Run(name, func(t *testing.T) {
			back := time.Time{}
			f := &fakeSettler{}
			f.refuse = func(tried) error {
				if back.IsZero() {
					back = time.Now().Add(time.Hour)
				}
				if time.Now().Before(back) {
					return err
				}
				return nil
			}
			completing(t, 100, f, func(t *testing.T, c *completer) {
				time.Sleep(time.Minute)
				if p := c.health.problem(time.Now(), 0); p == "" {
					t.Error("health shows no problem in the outage")
				}
				time.Sleep(time.Hour - time.Minute + 4*time.Second)
				f.check(t, c, 100)
				if n := f.count(); n > 3000 {
					t.Errorf("%d tries in an hour, want at most one a second or two", n)
				}
				if p := c.health.problem(time.Now(), 0); p != "" {
					t.Errorf("after the return health shows %q", p)
				}
			})
		})
	}
}

// When the answer to a commit is lost the batch is written again, changes
// nothing, and is counted once.
func TestLostAnswerToASettleCountsOnce(t *testing.T) {
	f := &fakeSettler{answer: func(calls int) error {
		if calls == 1 {
			return errAway
		}
		return nil
	}}
	completing(t, 10, f, func(t *testing.T, c *completer) {
		time.Sleep(5 * time.Second)
		f.check(t, c, 10)
		if n := c.stats.leasesLost.Load(); n != 0 {
			t.Errorf("%d leases counted as lost, want none", n)
		}
	})
}

// A statement that never reached the server leaves no doubt: what is gone
// afterwards was lost, and is not counted as done.
func TestOutcomeOfALostLeaseAfterAnOutageIsNotCounted(t *testing.T) {
	tries := 0
	f := &fakeSettler{}
	f.refuse = func(tried) error {
		if tries++; tries == 1 {
			delete(f.running, 2) // reaped meanwhile
			return &pgconn.ConnectError{}
		}
		return nil
	}
	completing(t, 3, f, func(t *testing.T, c *completer) {
		time.Sleep(5 * time.Second)
		f.check(t, c, 3, 2)
		if n := c.stats.leasesLost.Load(); n != 1 {
			t.Errorf("%d leases counted as lost, want 1", n)
		}
	})
}

// A settle that meets no partition makes it and writes again.
func TestMissingPartitionIsMade(t *testing.T) {
	f := &fakeSettler{}
	f.refuse = func(tried) error {
		if f.made == 0 {
			return refused("23514")
		}
		return nil
	}
	completing(t, 20, f, func(t *testing.T, c *completer) {
		time.Sleep(time.Second)
		f.check(t, c, 20)
		if n := f.count(); f.made != 1 || n != 2 {
			t.Errorf("partitions made %d times in %d transactions, want once in 2", f.made, n)
		}
	})
}

// Where partitions cannot be made the outcomes are set aside for the janitor.
func TestOutcomesWithoutAPartitionAreSetAside(t *testing.T) {
	f := &fakeSettler{makeErr: refused("42501"), refuse: func(s tried) error {
		if !s.aside {
			return refused("23514")
		}
		return nil
	}}
	completing(t, 20, f, func(t *testing.T, c *completer) {
		time.Sleep(time.Second)
		f.check(t, c, 20)
	})
}

// A constraint that is not about partitions has the same SQLSTATE. Its row is
// found by halving, like any other that is refused; nothing spins.
func TestViolatedConstraintIsNotTakenForAMissingPartition(t *testing.T) {
	f := &fakeSettler{}
	f.refuse = func(s tried) error {
		if f.calls > 1000 {
			return errors.New("spinning")
		}
		if slices.Contains(s.ids, 5) && !s.aside {
			return refused("23514")
		}
		return nil
	}
	completing(t, 16, f, func(t *testing.T, c *completer) {
		time.Sleep(time.Second)
		f.check(t, c, 16)
		if n := f.count(); n > 50 {
			t.Errorf("%d transactions, want a few", n)
		}
	})
}
