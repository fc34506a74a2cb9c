package simplequeue_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

const fenceLimit = 10 * time.Second

// fenced is a database with jobs running under claims whose nonce is the same,
// as those of one claim call are.
type fenced struct {
	pool  *pgxpool.Pool
	db    *store.DB
	nonce int64
	ids   []int64
}

// newFenced claims so many jobs.
func newFenced(t *testing.T, jobs int) *fenced {
	t.Helper()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	q := newQueue(t, pool, simplequeue.Options{})
	for range jobs {
		insert(t, q, simplequeue.NewJob{Queue: "fence", MaxAttempts: 5})
	}
	f := &fenced{pool: pool, db: &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}, nonce: 1 << 40}
	claimed, err := f.db.Claim(t.Context(), fenceLimit, store.ClaimRequest{
		Worker: uuid.New(), Nonce: f.nonce, LeaseMS: 60_000, Limit: jobs,
		First: []int32{1}, Last: []int32{1}, Budget: []int32{int32(jobs)},
		Queue: []string{"fence"}, Lane: []int16{0}, After: []int64{0},
	})
	if err != nil || len(claimed) != jobs {
		t.Fatalf("Claim: %d jobs, %v, want %d", len(claimed), err, jobs)
	}
	for _, c := range claimed {
		f.ids = append(f.ids, c.ClaimID)
	}
	return f
}

// makeRoom makes the partitions that the first outcomes would make.
func makeRoom(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	j, err := janitor.New(pool, janitor.Options{Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = j.Once(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a step and returns the claims that its rows name.
func (f *fenced) run(t *testing.T, s store.Step) map[int64]bool {
	t.Helper()
	hit := map[int64]bool{}
	s.Scan = func(row pgx.Rows) error {
		values, err := row.Values()
		if err == nil {
			hit[values[0].(int64)] = true
		}
		return err
	}
	if err := f.db.Tx(t.Context(), fenceLimit, s); err != nil {
		t.Fatal(err)
	}
	return hit
}

func (f *fenced) count(t *testing.T, table string) (n int) {
	t.Helper()
	if err := f.pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue."+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// one is a batch of one outcome under a fence.
func one(id, nonce int64, state string) *store.Settle {
	text := "an error"
	return &store.Settle{
		ClaimIDs: []int64{id}, Nonces: []int64{nonce}, Keep: []int64{janitor.Forever}, States: []string{state},
		Reasons: []string{"retry"}, Texts: []*string{&text}, Stacks: []*string{nil},
		RunAtUS: []*int64{nil}, AfterUS: []*int64{nil}, Lanes: []int16{store.FrontLane},
	}
}

// Every statement that writes a running job matches both parts of its fence: an
// id with another nonce is a claim from another timeline, a nonce with another
// id is a neighbour in the same claim call. Neither may be touched.
func TestEveryWriteOfARunningJobMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	writes := map[string]struct {
		step  func(id, nonce int64) store.Step
		table string // where the job goes
	}{
		"archive": {func(id, nonce int64) store.Step { return janitor.Archive(withoutError(one(id, nonce, "completed"))) }, "job_queue_archive"},
		"archive with results": {func(id, nonce int64) store.Step {
			s := one(id, nonce, "completed")
			s.Results = []string{"1"}
			return janitor.ArchiveResults(s)
		}, "job_queue_archive WHERE result = '1'"},
		"aside with results": {func(id, nonce int64) store.Step {
			s := one(id, nonce, "completed")
			s.Results = []string{"1"}
			return store.SettleResultsAside(s)
		}, "job_finished WHERE result = '1'"},
		"dead letter": {
			func(id, nonce int64) store.Step { return janitor.DeadLetter(one(id, nonce, "failed")) }, "job_queue_dlq",
		},
		"aside": {func(id, nonce int64) store.Step {
			s := one(id, nonce, "failed")
			return store.SettleAside(s)
		}, "job_finished"},
		"waiting": {func(id, nonce int64) store.Step {
			s := one(id, nonce, "")
			return store.SettleWaiting(s)
		}, "job_waiting"},
		"give back": {func(id, nonce int64) store.Step {
			s := one(id, nonce, "")
			return store.SettleGiveBack(s)
		}, "job_queue"},
	}
	for name, w := range writes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFenced(t, 3)
			for what, stale := range map[string][2]int64{
				"the id with another nonce":  {f.ids[1], f.nonce + 1},
				"the nonce with another id":  {f.ids[2] + 1000, f.nonce},
				"neither the id nor a nonce": {f.ids[2] + 1000, f.nonce + 1},
			} {
				if hit := f.run(t, w.step(stale[0], stale[1])); len(hit) != 0 {
					t.Errorf("%s: reports the claims %v, want none", what, hit)
				}
			}
			if n, into := f.count(t, "job_running"), f.count(t, w.table); n != 3 || into != 0 {
				t.Fatalf("after stale writes: %d running, %d in %s, want 3 and 0", n, into, w.table)
			}
			hit := f.run(t, w.step(f.ids[1], f.nonce))
			if len(hit) != 1 || !hit[f.ids[1]] {
				t.Errorf("the true fence reports the claims %v, want %d only", hit, f.ids[1])
			}
			if n, into := f.count(t, "job_running"), f.count(t, w.table); n != 2 || into != 1 {
				t.Errorf("after the write: %d running, %d in %s, want 2 and 1", n, into, w.table)
			}
			if hit := f.run(t, w.step(f.ids[1], f.nonce)); len(hit) != 0 || f.count(t, w.table) != 1 {
				t.Errorf("written again: reports the claims %v, %d in %s, want none and 1", hit, f.count(t, w.table), w.table)
			}
		})
	}
}

// So does every statement that writes a running job and leaves it running.
func TestEveryChangeOfARunningJobMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	text := `"changed"`
	changes := map[string]func(id, nonce int64) store.Step{
		"checkpoint": func(id, nonce int64) store.Step {
			return store.Checkpoint(store.Claim{ID: id, Nonce: nonce}, &text, nil, len(text), false)
		},
		"step": func(id, nonce int64) store.Step {
			return store.SaveStep(store.Claim{ID: id, Nonce: nonce}, "a step", text, 0)
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFenced(t, 3)
			changed := func(id, nonce int64) (bool, int) {
				held, err := f.db.Changed(t.Context(), fenceLimit, change(id, nonce))
				if err != nil {
					t.Fatal(err)
				}
				return held, f.count(t, "job_running WHERE payload IS NOT NULL OR payload_bytes > 0") + f.count(t, "job_payload")
			}
			if held, n := changed(f.ids[1], f.nonce+1); held || n != 0 {
				t.Errorf("another nonce: held %t, %d rows changed", held, n)
			}
			if held, n := changed(f.ids[2]+1000, f.nonce); held || n != 0 {
				t.Errorf("another id: held %t, %d rows changed", held, n)
			}
			if held, n := changed(f.ids[1], f.nonce); !held || n == 0 {
				t.Errorf("the true fence: held %t, %d rows changed", held, n)
			}
			if n := f.count(t, "job_running"); n != 3 {
				t.Errorf("%d jobs run, want 3", n)
			}
		})
	}
}

func withoutError(s *store.Settle) *store.Settle {
	s.Texts, s.Reasons = []*string{nil}, []string{""}
	return s
}

// The lock before a settle is taken on the claims named by both parts only.
func TestLockOfClaimsMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	f := newFenced(t, 3)
	lock := func(id, nonce int64) map[int64]bool {
		return f.run(t, store.Step{Statement: store.LockClaims, Args: []any{[]int64{id}, []int64{nonce}}})
	}
	if hit := lock(f.ids[1], f.nonce+1); len(hit) != 0 {
		t.Errorf("another nonce locks %v", hit)
	}
	if hit := lock(f.ids[2]+1000, f.nonce); len(hit) != 0 {
		t.Errorf("another id locks %v", hit)
	}
	if hit := lock(f.ids[1], f.nonce); len(hit) != 1 || !hit[f.ids[1]] {
		t.Errorf("the true fence locks %v, want %d only", hit, f.ids[1])
	}
}

// A beat renews nothing for a stale owner and tells it that its claim is gone;
// it takes over the lease row that a claim of the same id left behind before a
// failover.
func TestBeatMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	f := newFenced(t, 3)
	beat := func(id, nonce int64) map[int64]bool {
		alive, err := f.db.Beat(t.Context(), fenceLimit, []int64{id}, []int64{nonce})
		if err != nil {
			t.Fatal(err)
		}
		return alive
	}
	if alive := beat(f.ids[1], f.nonce+1); len(alive) != 0 || f.count(t, "job_lease") != 0 {
		t.Errorf("beat with another nonce: alive %v, %d leases, want none", alive, f.count(t, "job_lease"))
	}
	if alive := beat(f.ids[2]+1000, f.nonce); len(alive) != 0 || f.count(t, "job_lease") != 0 {
		t.Errorf("beat with another id: alive %v, %d leases, want none", alive, f.count(t, "job_lease"))
	}
	if _, err := f.pool.Exec(t.Context(), "INSERT INTO simplequeue.job_lease VALUES ($1, 7, now() - interval '1 day')", f.ids[1]); err != nil {
		t.Fatal(err)
	}
	if alive := beat(f.ids[1], f.nonce); len(alive) != 1 || !alive[f.ids[1]] {
		t.Errorf("beat with the true fence: alive %v, want %d only", alive, f.ids[1])
	}
	var nonce int64
	var age time.Duration
	err := f.pool.QueryRow(t.Context(), "SELECT claim_nonce, clock_timestamp() - beat_at FROM simplequeue.job_lease WHERE claim_id = $1", f.ids[1]).Scan(&nonce, &age)
	if err != nil || nonce != f.nonce || age > time.Minute || f.count(t, "job_lease") != 1 {
		t.Errorf("lease: nonce %d, age %v, %v, %d rows, want the claim's own nonce, fresh, in the only row", nonce, age, err, f.count(t, "job_lease"))
	}
}

// What drops the lease of an ended claim leaves the leases of others.
func TestForgetLeasesMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	f := newFenced(t, 3)
	if _, err := f.db.Beat(t.Context(), fenceLimit, f.ids, []int64{f.nonce, f.nonce, f.nonce}); err != nil {
		t.Fatal(err)
	}
	forget := func(id, nonce int64) int {
		f.run(t, store.ForgetLeases(&store.Settle{ClaimIDs: []int64{id}, Nonces: []int64{nonce}}))
		return f.count(t, "job_lease")
	}
	if n := forget(f.ids[1], f.nonce+1); n != 3 {
		t.Errorf("another nonce leaves %d leases, want 3", n)
	}
	if n := forget(f.ids[2]+1000, f.nonce); n != 3 {
		t.Errorf("another id leaves %d leases, want 3", n)
	}
	if n := forget(f.ids[1], f.nonce); n != 2 {
		t.Errorf("the true fence leaves %d leases, want 2", n)
	}
}

// A request to cancel one claim does not end another: neither one with the same
// id from before a failover, nor a neighbour of the same claim call.
func TestCancelRequestMatchesBothPartsOfTheFence(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]func(f *fenced, id int64) (int64, int64){
		"another nonce": func(f *fenced, id int64) (int64, int64) { return id, f.nonce + 1 },
		"another id":    func(f *fenced, id int64) (int64, int64) { return id + 1000, f.nonce },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFenced(t, 4)
			for _, claim := range f.ids {
				id, nonce := request(f, claim)
				if _, err := f.pool.Exec(t.Context(), "INSERT INTO simplequeue.job_cancel (claim_id, claim_nonce, job_id) VALUES ($1, $2, gen_random_uuid())", id, nonce); err != nil {
					t.Fatal(err)
				}
			}
			if n := f.count(t, "job WHERE state = 'cancelling'"); n != 0 {
				t.Errorf("%d jobs are shown as cancelling, want none", n)
			}
			s := one(f.ids[0], f.nonce, "")
			f.run(t, store.SettleWaiting(s))
			f.run(t, store.SettleGiveBack(&store.Settle{ClaimIDs: []int64{f.ids[1]}, Nonces: s.Nonces, Lanes: s.Lanes}))
			s = one(f.ids[2], f.nonce, "failed")
			f.run(t, store.SettleAside(s))
			f.run(t, janitor.DeadLetter(one(f.ids[3], f.nonce, "failed")))
			for _, from := range []string{"job_waiting", "job_queue", "job_finished WHERE state = 'failed'", "job_queue_dlq WHERE state = 'failed'"} {
				if n := f.count(t, from); n != 1 {
					t.Errorf("%d rows in %s, want 1: nothing was to be cancelled", n, from)
				}
			}
		})
	}
}

// When a failover to a lagging standby or a restore has set the claim ids back,
// a new job can carry the claim id of an old one. The old owner's outcome leaves
// it alone.
func TestOldClaimOfAReusedIDChangesNothing(t *testing.T) {
	t.Parallel()
	for name, outcome := range zombieOutcomesOf() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			running, release, after := make(chan struct{}), make(chan struct{}), make(chan struct{})
			old := newQueue(t, pool, handler("old", func(context.Context, *simplequeue.Job) error {
				close(running)
				<-release
				return outcome
			}))
			start(t, old)
			insert(t, old, simplequeue.NewJob{Queue: "old"})
			<-running
			// The claim is undone and its id given again, to a new job.
			var claim int64
			if err := pool.QueryRow(t.Context(), "DELETE FROM simplequeue.job_running RETURNING claim_id").Scan(&claim); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), "SELECT setval(pg_get_serial_sequence('simplequeue.job_running', 'claim_id'), $1, false)", claim); err != nil {
				t.Fatal(err)
			}
			next := newQueue(t, pool, handler("new", func(context.Context, *simplequeue.Job) error { <-after; return nil }))
			start(t, next)
			id := insert(t, next, simplequeue.NewJob{Queue: "new"})
			awaitState(t, next, id, simplequeue.StateRunning)
			var reused int64
			if err := pool.QueryRow(t.Context(), "SELECT claim_id FROM simplequeue.job_running").Scan(&reused); err != nil || reused != claim {
				t.Fatalf("claim id %d, %v, want %d again", reused, err, claim)
			}
			close(release)
			eventually(t, "the old outcome is refused", func() bool { return old.Stats().LeasesLost == 1 })
			if got := state(t, next, id); got != simplequeue.StateRunning {
				t.Errorf("the new job is %s, want %s", got, simplequeue.StateRunning)
			}
			close(after)
			awaitState(t, next, id, simplequeue.StateCompleted)
		})
	}
}

func zombieOutcomesOf() map[string]error {
	return map[string]error{
		"complete": nil, "retry": context.Canceled, "reschedule": simplequeue.RescheduleAfter(time.Hour), "critical": simplequeue.Critical(nil),
	}
}
