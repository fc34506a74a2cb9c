package reaper

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const nonce = 77

// world is a database with running jobs whose worker is silent, the oldest for
// longest.
type world struct {
	pool *pgxpool.Pool
	r    *Reaper
}

func newWorld(t *testing.T) *world {
	t.Helper()
	pool := pgtest.New(t)
	r, err := New(pool, Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &world{pool, r}
}

func (w *world) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := w.pool.Exec(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func (w *world) count(t *testing.T, from string) (n int) {
	t.Helper()
	if err := w.pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue."+from).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// running adds a job claimed so long ago, with a lease of a second.
func (w *world) running(t *testing.T, ago string, attempt, maxAttempts, crashes int) (claim int64) {
	t.Helper()
	err := w.pool.QueryRow(t.Context(), `INSERT INTO simplequeue.job_running
		(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count,
		 crash_count, payload_bytes, priority, lane, queue, kind)
		VALUES ($1, clock_timestamp() - $2::interval, $3, 1, now(), $4, 1000, $5, $6, 0, $7, 0, 0, 0, 'q', '')
		RETURNING claim_id`, nonce, ago, uuid.New(), uuid.New(), attempt, maxAttempts, crashes).Scan(&claim)
	if err != nil {
		t.Fatal(err)
	}
	return claim
}

func (w *world) once(t *testing.T) Result {
	t.Helper()
	r, err := w.r.Once(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) sweep(t *testing.T) Result {
	t.Helper()
	r, err := w.r.sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Every running row of a dead worker has an exit: it runs again as a suspect,
// with its crash counted, or ends because the crash used its last attempt, was
// one too many, or met a request to cancel.
func TestEveryStaleClaimHasAnExit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.running(t, "1 hour", 1, 3, 0)
	w.running(t, "1 hour", 3, 3, 0)
	w.running(t, "1 hour", 3, 3, 2) // bad before failed: the reason that helps
	cancelled := w.running(t, "1 hour", 1, 3, 0)
	w.exec(t, "INSERT INTO simplequeue.job_cancel (claim_id, claim_nonce, job_id, reason) VALUES ($1, $2, gen_random_uuid(), 'enough')", cancelled, nonce)
	fresh := w.running(t, "0 seconds", 1, 3, 0)
	w.exec(t, "UPDATE simplequeue.job_running SET lease_ms = 3600000 WHERE claim_id = $1", fresh)

	if got, want := w.once(t), (Result{Requeued: 1, Failed: 1, Bad: 1, Cancelled: 1}); got != want {
		t.Errorf("Once() = %+v, want %+v", got, want)
	}
	for from, want := range map[string]int{
		"job_running": 1,
		"job_queue WHERE lane = -2 AND attempt = 1 AND crash_count = 1 AND errors -> 0 ->> 'reason' = 'worker_lost'":      1,
		"job_finished WHERE state = 'failed' AND reason = 'worker lost' AND crash_count = 1":                              1,
		"job_finished WHERE state = 'bad_job' AND reason = 'crashed 3 times in a row' AND jsonb_array_length(errors) = 1": 1,
		"job_finished WHERE state = 'cancelled' AND reason = 'enough'":                                                    1,
		"job_cancel": 0,
	} {
		if n := w.count(t, from); n != want {
			t.Errorf("%d rows in %s, want %d", n, from, want)
		}
	}
	if got := w.once(t); got != (Result{}) {
		t.Errorf("a second sweep finds %+v, want nothing", got)
	}
}

// A lease that is kept saves its own claim, under both parts of the fence, and
// no other.
func TestLeaseSavesOnlyItsOwnClaim(t *testing.T) {
	t.Parallel()
	for name, lease := range map[string]struct {
		add  func(claim int64) (int64, int64)
		save bool
	}{
		"its own":       {func(claim int64) (int64, int64) { return claim, nonce }, true},
		"another nonce": {func(claim int64) (int64, int64) { return claim, nonce + 1 }, false},
		"another id":    {func(claim int64) (int64, int64) { return claim + 1000, nonce }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id, n := lease.add(w.running(t, "1 hour", 1, 3, 0))
			w.exec(t, "UPDATE simplequeue.job_running SET lease_ms = 60000") // a kept one stays so
			w.exec(t, "INSERT INTO simplequeue.job_lease VALUES ($1, $2, clock_timestamp())", id, n)
			want := 1
			if lease.save {
				want = 0
			}
			if got := w.once(t).Requeued; got != want {
				t.Errorf("requeued %d, want %d", got, want)
			}
		})
	}
}

// What takes a stale claim away looks again, under both parts of the fence: it
// touches no other claim, and none that was renewed after it was found stale.
func TestMoveOfStaleClaimsMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.running(t, "1 hour", 1, 3, 0), w.running(t, "1 hour", 1, 3, 0)
	move := func(id, nonce int64) (moved int) {
		t.Helper()
		err := w.r.db.Tx(t.Context(), limit, store.Step{
			Statement: moveStale, Args: []any{[]int64{id}, []int64{nonce}, 3, 5000},
			Scan: func(pgx.Rows) error { moved++; return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return moved
	}
	if n := move(a, nonce+1); n != 0 {
		t.Errorf("another nonce moves %d", n)
	}
	if n := move(b+1000, nonce); n != 0 {
		t.Errorf("another id moves %d", n)
	}
	w.exec(t, "INSERT INTO simplequeue.job_lease VALUES ($1, $2, clock_timestamp())", a, nonce)
	if n := move(a, nonce); n != 0 {
		t.Errorf("a claim renewed meanwhile: %d moved, want none", n)
	}
	// A fresh lease of another claim saves nobody.
	w.exec(t, "UPDATE simplequeue.job_lease SET claim_nonce = claim_nonce + 1")
	if n := move(a, nonce); n != 1 {
		t.Errorf("with the lease of a claim of the same id: %d moved, want 1", n)
	}
	w.exec(t, "UPDATE simplequeue.job_lease SET claim_nonce = $1", nonce)
	if n := move(b, nonce); n != 1 {
		t.Errorf("with the lease of a claim of the same nonce: %d moved, want 1", n)
	}
	if n := w.count(t, "job_running"); n != 0 {
		t.Errorf("%d still running, want none", n)
	}
}

// A request to cancel ends its own claim when that is reaped, under both parts
// of the fence, and no other.
func TestRequestEndsOnlyItsOwnStaleClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.running(t, "1 hour", 1, 3, 0), w.running(t, "1 hour", 1, 3, 0)
	w.exec(t, "INSERT INTO simplequeue.job_cancel (claim_id, claim_nonce, job_id) VALUES ($1, $3 + 1, gen_random_uuid()), ($2 + 1000, $3, gen_random_uuid())", a, b, nonce)
	if got := w.once(t); got != (Result{Requeued: 2}) {
		t.Errorf("Once() = %+v, want two requeued and none cancelled", got)
	}
}

// Between finding a claim stale and taking it away the job may be completed by
// its owner, or be locked by it: the sweep changes only rows that still are
// under the claim that it saw, and waits for nobody.
func TestSweepLeavesARowThatItsOwnerHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	held := w.running(t, "1 hour", 1, 3, 0)
	w.running(t, "1 hour", 1, 3, 0)
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "DELETE FROM simplequeue.job_running WHERE claim_id = $1", held); err != nil {
		t.Fatal(err)
	}
	if got := w.once(t); got.Requeued != 1 {
		t.Errorf("Once() beside a row that is being settled = %+v, want the other one requeued", got)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.once(t); got != (Result{}) || w.count(t, "job_queue") != 1 {
		t.Errorf("after the settle Once() = %+v and %d jobs queued, want nothing and 1", got, w.count(t, "job_queue"))
	}
}

// Whatever is deleted or overwritten of the data about a lease, every running
// row converges to an exit.
func TestEveryRowConvergesWhateverIsLostAboutItsLease(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{
		"DELETE FROM simplequeue.job_lease",
		"UPDATE simplequeue.job_lease SET claim_nonce = 0",
		"UPDATE simplequeue.job_lease SET claim_id = claim_id + 1000",
		"UPDATE simplequeue.job_lease SET beat_at = '-infinity'",
		"DELETE FROM simplequeue.job_worker",
		"DELETE FROM simplequeue.job_sweep",
		"UPDATE simplequeue.job_running SET worker_id = gen_random_uuid()",
		"UPDATE simplequeue.job_running SET lease_ms = 0",
		"UPDATE simplequeue.job_running SET lease_ms = -1000",
		"UPDATE simplequeue.job_running SET claimed_at = '-infinity'",
		"UPDATE simplequeue.job_running SET claim_nonce = 0",
	} {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			claim := w.running(t, "1 hour", 1, 3, 0)
			w.exec(t, "INSERT INTO simplequeue.job_lease VALUES ($1, $2, clock_timestamp() - interval '1 hour')", claim, nonce)
			w.exec(t, "INSERT INTO simplequeue.job_worker (worker_id, name, queues) SELECT worker_id, 'w', '{q}' FROM simplequeue.job_running")
			w.exec(t, damage)
			if got := w.once(t); got.Requeued != 1 || w.count(t, "job_running") != 0 {
				t.Errorf("Once() = %+v with %d still running, want the job requeued", got, w.count(t, "job_running"))
			}
		})
	}
}

// Leases age only while sweeps can run: the first sweep after a gap takes
// nothing away, the lease counts from it.
func TestGapInTheSweepsAgesNoLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.r.opts.Interval = 10 * time.Second
	w.running(t, "1 hour", 1, 3, 0)
	if got := w.sweep(t); got != (Result{}) {
		t.Errorf("the first sweep ever finds %+v, want nothing", got)
	}
	w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = swept_at - interval '16 seconds', continuous_since = continuous_since - interval '1 hour'")
	if got := w.sweep(t); got != (Result{}) {
		t.Errorf("the sweep after a gap finds %+v, want nothing", got)
	}
	// An interval and a bit is no gap.
	w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = swept_at - interval '12 seconds', continuous_since = continuous_since - interval '12 seconds'")
	if got := w.sweep(t); got.Requeued != 1 {
		t.Errorf("a sweep in time finds %+v, want the job requeued", got)
	}
}

// A round trip that is long beside a short interval is no gap: or the only
// process that sweeps would find one each time, and reap nothing.
func TestShortIntervalsAreNotFullOfGaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.r.opts.Interval = 100 * time.Millisecond
	w.sweep(t)
	w.running(t, "1 hour", 1, 3, 0)
	for began := time.Now(); ; {
		w.exec(t, "UPDATE simplequeue.job_sweep SET continuous_since = continuous_since - interval '1 hour', swept_at = clock_timestamp() - interval '200 milliseconds'")
		if w.sweep(t).Requeued == 1 {
			break
		}
		if time.Since(began) > 10*time.Second { // one that was really late is not the only one
			t.Fatal("sweeps 200 ms after the last ones requeue nothing")
		}
	}
	w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = swept_at - interval '2 seconds', continuous_since = continuous_since - interval '1 hour'")
	w.running(t, "1 hour", 1, 3, 0)
	if got := w.sweep(t); got != (Result{}) {
		t.Errorf("a sweep two seconds late finds %+v, want nothing", got)
	}
}

// TestClockSetBackStopsNoSweep: what was noted while the server's clock was ahead
// keeps no sweep away, and no job from being found.
func TestClockSetBackStopsNoSweep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.r.opts.Interval = 10 * time.Second
	w.sweep(t)
	w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = swept_at + interval '1 day', continuous_since = continuous_since + interval '1 hour'")
	id := w.running(t, "-1 day", 1, 3, 0)
	w.exec(t, "INSERT INTO simplequeue.job_lease (claim_id, claim_nonce, beat_at) VALUES ($1, $2, now() + interval '1 day')", id, nonce)
	if got := w.sweep(t); got != (Result{}) {
		t.Errorf("the sweep that finds the clock set back finds %+v, want nothing", got)
	}
	if n := w.count(t, "job_sweep WHERE name = 'reaper' AND swept_at <= clock_timestamp() AND continuous_since <= clock_timestamp()"); n != 1 {
		t.Fatal("the sweep was not made")
	}
	// A live worker has beaten since, and a claim made since is of now.
	alive := w.running(t, "-1 day", 1, 3, 0)
	w.exec(t, "INSERT INTO simplequeue.job_lease (claim_id, claim_nonce, beat_at) VALUES ($1, $2, now() + interval '1 minute')", alive, nonce)
	w.running(t, "-30 seconds", 1, 3, 0) // by a clock that was set back a little
	w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = swept_at - interval '12 seconds', continuous_since = continuous_since - interval '12 seconds'")
	if got := w.sweep(t); got.Requeued != 1 {
		t.Errorf("a later sweep finds %+v, want one job requeued", got)
	}
	if n := w.count(t, "job_running"); n != 2 {
		t.Errorf("%d jobs run on, want 2", n)
	}
}

// locked locks a table until unlock is called.
func (w *world) locked(t *testing.T, table string) (unlock func()) {
	t.Helper()
	tx, err := w.pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "LOCK TABLE simplequeue."+table+" IN EXCLUSIVE MODE")
	}
	if err != nil {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	t.Cleanup(unlock)
	return unlock
}

// A sweep waits where beats have to wait, and its wait is a gap: nobody could
// beat meanwhile, so every lease counts from the end of the wait.
func TestWaitOfASweepAgesNoLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.r.opts.Interval = 10 * time.Second // 2 s are no gap between sweeps
	if _, err := w.r.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = swept_at - interval '10 seconds', continuous_since = continuous_since - interval '1 hour'")
	w.running(t, "1 hour", 1, 3, 0)
	unlock := w.locked(t, "job_lease")
	swept := make(chan Result)
	go func() {
		r, err := w.r.sweep(context.Background())
		if err != nil {
			t.Error(err)
		}
		swept <- r
	}()
	select {
	case <-swept:
		t.Error("the sweep does not wait")
	case <-time.After(2 * time.Second):
		unlock()
		if got := <-swept; got != (Result{}) {
			t.Errorf("the sweep that had to wait finds %+v, want nothing", got)
		}
	}
}

// Once sweeping has begun it does not wait for tables that somebody locks: it
// fails, takes no job, and its end is not that of a sweep in time.
func TestSweepFailsOnALockedTable(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"job_lease", "job_cancel", "job_fingerprint"} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.running(t, "1 hour", 1, 3, 0)
			if table != "job_lease" {
				w.once(t) // so that what fails is what comes after the reaping
			}
			if table == "job_cancel" {
				w.exec(t, "INSERT INTO simplequeue.job_cancel (claim_id, claim_nonce, job_id) VALUES (1000, 1, gen_random_uuid())")
			}
			w.locked(t, table)
			began := time.Now()
			_, err := w.r.Once(t.Context())
			if store.Code(err) != "55P03" {
				t.Errorf("Once() = %v beside a lock on %s, want it not to wait", err, table)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("Once() took %v", took)
			}
			if n := w.count(t, "job_running"); table == "job_lease" && n != 1 {
				t.Errorf("%d jobs still running, want 1", n)
			}
		})
	}
}

// Many processes sweep no more often than one: who comes within half an
// interval of another's sweep leaves it.
func TestSweepOfAnotherProcessIsNotRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := w.r.sweep(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.exec(t, "UPDATE simplequeue.job_sweep SET continuous_since = continuous_since - interval '1 hour'")
	w.running(t, "1 hour", 1, 3, 0)
	if got, err := w.r.sweep(t.Context()); err != nil || got != (Result{}) {
		t.Errorf("sweep right after another's = %+v, %v, want none made", got, err)
	}
}

// A sweep that is cut off at any moment holds nothing back: the next one
// finishes its work. Each claim is reaped once.
func TestSweepCutOffAtAnyMomentIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const many = 2000
	w.exec(t, `INSERT INTO simplequeue.job_running
		(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count,
		 crash_count, payload_bytes, priority, lane, queue, kind)
		SELECT 1, now() - interval '1 hour', gen_random_uuid(), n, now(), gen_random_uuid(), 1000, 1, 3, 0, 0, 0, 0, 0, 'q', ''
		FROM generate_series(1, $1::integer) AS n`, many)
	for d := time.Millisecond; w.count(t, "job_running") > 0; d += 7 * time.Millisecond {
		if d > 2*time.Second {
			t.Fatalf("%d claims are never reaped", w.count(t, "job_running"))
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), d)
				defer cancel()
				_, _ = w.r.Once(ctx)
			})
		}
		wg.Wait()
	}
	if n := w.count(t, "job_queue WHERE crash_count = 1"); n != many {
		t.Errorf("%d jobs runnable again with one crash, want %d", n, many)
	}
}

// Leases and requests of claims that are gone are swept; those of living claims
// are kept, by both parts of the fence.
func TestLeftoversOfEndedClaimsGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.running(t, "0 seconds", 1, 3, 0), w.running(t, "0 seconds", 1, 3, 0)
	for _, table := range []string{"job_lease", "job_cancel"} {
		columns := map[string]string{"job_lease": "beat_at", "job_cancel": "requested_at, job_id"}[table]
		values := map[string]string{"job_lease": "now() - interval '1 minute'", "job_cancel": "now(), gen_random_uuid()"}[table]
		w.exec(t, "INSERT INTO simplequeue."+table+" (claim_id, claim_nonce, "+columns+`)
			VALUES ($1, $4, `+values+`), ($2, $4 + 1, `+values+`), ($3, $4, `+values+`)`,
			a, b, b+1000, nonce)
	}
	w.exec(t, "UPDATE simplequeue.job_running SET lease_ms = 3600000")
	if got := w.once(t); got != (Result{}) {
		t.Errorf("Once() = %+v, want nothing reaped", got)
	}
	for _, table := range []string{"job_lease", "job_cancel"} {
		if n, own := w.count(t, table), w.count(t, table+" WHERE claim_id = (SELECT min(claim_id) FROM simplequeue.job_running)"); n != 1 || own != 1 {
			t.Errorf("%s: %d rows left, %d of the living claim, want that one only", table, n, own)
		}
	}
}

// A job's lease is as long as its own row says, whoever sweeps.
func TestLeaseLengthIsTheOwners(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.running(t, "10 seconds", 1, 3, 0)
	long := w.running(t, "10 seconds", 1, 3, 0)
	w.exec(t, "UPDATE simplequeue.job_running SET lease_ms = 3600000 WHERE claim_id = $1", long)
	if got := w.once(t); got.Requeued != 1 || w.count(t, "job_running") != 1 {
		t.Errorf("Once() = %+v with %d still running, want one of each", got, w.count(t, "job_running"))
	}
}

// Options that make no sense are refused by name.
func TestNewRefusesNonsense(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.EmptyDatabase(t), 1)
	for _, o := range []Options{{Interval: -1}, {MaxCrashes: -1}} {
		if _, err := New(pool, o); err == nil {
			t.Errorf("New(%+v) gives no error", o)
		}
	}
}

// All new fingerprints are looked at in one sweep, however many batches they
// make, and each duplicate names the oldest job of its fingerprint.
func TestDuplicatesAreFoundInAllBatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `INSERT INTO simplequeue.job_fingerprint (job_id, fingerprint)
		SELECT gen_random_uuid(), 'f' || i % 2 FROM generate_series(1, 1202) AS i`)
	if r := w.once(t); r.Duplicates != 1200 {
		t.Errorf("%d duplicates, want 1200", r.Duplicates)
	}
	if n := w.count(t, `job_fingerprint AS f WHERE checked AND duplicate_of IS NOT DISTINCT FROM nullif(
		(SELECT o.job_id FROM simplequeue.job_fingerprint AS o WHERE o.fingerprint = f.fingerprint ORDER BY o.job_id LIMIT 1), job_id)`); n != 1202 {
		t.Errorf("%d of 1202 are marked as they should be", n)
	}
	if r := w.once(t); r.Duplicates != 0 {
		t.Errorf("%d duplicates in the second sweep", r.Duplicates)
	}
}

// freezer holds a process up at a statement of its, counted from 0, once the
// server has done it and, where they came in one message, those after it.
type freezer struct {
	at     int64
	seen   atomic.Int64
	frozen chan struct{}
	thaw   chan struct{}
}

func (f *freezer) met() {
	if f.seen.Add(1)-1 == f.at {
		close(f.frozen)
		<-f.thaw
	}
}

func (f *freezer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (f *freezer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { f.met() }

func (f *freezer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (f *freezer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) { f.met() }
func (f *freezer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// A process that freezes anywhere in a sweep, with whatever it has locked, does
// not keep another one from sweeping on and taking what is stale.
func TestAFrozenProcessHoldsUpNoSweep(t *testing.T) {
	t.Parallel()
	for at := range int64(40) {
		t.Run(strconv.FormatInt(at, 10), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.r.opts.Interval = 100 * time.Millisecond
			w.sweep(t)
			w.running(t, "1 hour", 1, 3, 0)
			f := &freezer{at: at, frozen: make(chan struct{}), thaw: make(chan struct{})}
			config := w.pool.Config()
			config.ConnConfig.Tracer = f
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			r, err := New(pool, w.r.opts)
			if err != nil {
				t.Fatal(err)
			}
			w.exec(t, "UPDATE simplequeue.job_sweep SET swept_at = clock_timestamp() - interval '0.2 s', continuous_since = clock_timestamp() - interval '1 hour'")
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = r.sweep(context.Background())
			}()
			defer func() { close(f.thaw); <-done }()
			select {
			case <-done: // without as many statements
				return
			case <-f.frozen:
			}
			w.running(t, "1 hour", 1, 3, 0)
			began := time.Now()
			for w.count(t, "job_running") > 0 {
				if _, err := w.r.sweep(t.Context()); err != nil {
					t.Errorf("the sweep of another process: %v", err)
				}
				if time.Since(began) > 15*time.Second {
					t.Fatalf("%d jobs are not taken", w.count(t, "job_running"))
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}
