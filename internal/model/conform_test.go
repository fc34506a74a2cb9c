package model

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
	"github.com/simplequeue/simplequeue/reaper"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// Worlds without moments inside of statements, whose walks PostgreSQL can follow.
// Gates are not among them, for an admission looks at more than one; they have
// tests of their own. Nor are failovers, which no statement makes.
var (
	followed = World{
		Name: "jobs of their own", Jobs: 2, Workers: 2, Attempts: 2, MaxCrashes: 2, Delayed: true, Coarse: true,
		budget: budget{claims: 6, backs: 2, crashes: 2, sleeps: 2, lost: 2, cancels: 1},
	}
	followedKey = World{
		Name: "jobs with one key", Jobs: 2, Workers: 2, Attempts: 2, MaxCrashes: 2, Keyed: true, Coarse: true,
		budget: budget{claims: 6, backs: 2, crashes: 2, sleeps: 2, lost: 1, cancels: 1},
	}
)

// The statements do what the model says they do: walks through it, by chance but
// rather to where none has been, are made on PostgreSQL, and after each step both
// agree about every row.
func TestStatementsDoWhatTheModelSays(t *testing.T) {
	t.Parallel()
	const walks, steps = 15, 14
	for _, world := range []World{followed, followedKey} {
		t.Run(world.Name, func(t *testing.T) {
			t.Parallel()
			r := newReplica(t, world)
			chance := rand.New(rand.NewPCG(1, 2))
			been := map[string]int{}
			for walk := range walks {
				r.clear(t)
				s := world.Start()
				var trace []Action
				for range steps {
					next := world.Next(s, Rules{})
					if len(next) == 0 {
						break
					}
					problem := r.rest(t.Context(), next, len(trace)%4 == 0)
					if problem != nil {
						t.Fatalf("walk %d: %v, after %v", walk, problem, trace)
					}
					step := leastKnown(chance, been, s, next)
					trace = append(trace, step.Action)
					problem = r.follow(t.Context(), s, step)
					s = step.State
					if problem == nil {
						problem = r.compare(t.Context(), s)
					}
					if problem != nil {
						t.Fatalf("walk %d: %v, after %v", walk, problem, trace)
					}
				}
			}
			for _, what := range []What{
				Insert, Promote, Claim, Beat, Complete, Fail, GiveBack, Expire, Sweep, Crash, Suspend, Wake, Cancel, Archive,
			} {
				if !slices.ContainsFunc(sorted(been), func(k string) bool { return k[:3] == fmt.Sprintf("%02d ", what) }) && (what != Promote || world.Delayed) {
					t.Errorf("no walk has the step %q", whatNames[what])
				}
			}
			t.Logf("%d sorts of steps", len(been))
		})
	}
}

func sorted(been map[string]int) (all []string) {
	for k := range been {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// leastKnown chooses a step of a sort that has been made seldom. The sort of a
// step is what happens, to jobs in which condition, and what becomes of them.
func leastKnown(chance *rand.Rand, been map[string]int, s State, next []Step) Step {
	sort := func(step Step) string {
		text := fmt.Sprintf("%02d %v", step.Action.What, step.Action.Lost)
		for i := range s.Jobs {
			a, b := s.Jobs[i], step.State.Jobs[i]
			if a != b {
				text += fmt.Sprint(" ", a.Place, a.Attempt, a.Crashes, a.Age, a.Asked, "->", b.Place, b.End)
			}
		}
		return text
	}
	chance.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
	step := slices.MinFunc(next, func(a, b Step) int { return been[sort(a)] - been[sort(b)] })
	if chance.IntN(3) == 0 {
		step = next[0]
	}
	been[sort(step)]++
	return step
}

const limit = 30 * time.Second

// replica is a database that follows walks.
type replica struct {
	world   World
	pool    *pgxpool.Pool
	db      *store.DB
	queue   *simplequeue.SimpleQueue
	reaper  *reaper.Reaper
	janitor *janitor.Janitor
	ids     []uuid.UUID
	fences  map[Fence]store.Claim // of the claims of the model
}

func newReplica(t *testing.T, w World) *replica {
	t.Helper()
	pool, log := pgtest.New(t), slog.New(slog.DiscardHandler)
	r := &replica{world: w, pool: pool, db: &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}}
	var errs [3]error
	r.queue, errs[0] = simplequeue.New(pool, simplequeue.Options{Logger: log})
	r.reaper, errs[1] = reaper.New(pool, reaper.Options{MaxCrashes: int(w.MaxCrashes), Logger: log})
	r.janitor, errs[2] = janitor.New(pool, janitor.Options{Logger: log})
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// clear begins a walk.
func (r *replica) clear(t *testing.T) {
	t.Helper()
	r.ids, r.fences = nil, map[Fence]store.Claim{}
	for range r.world.Jobs {
		r.ids = append(r.ids, uuid.New())
	}
	for _, table := range []string{
		"job_queue", "job_waiting", "job_running", "job_finished", "job_lease", "job_cancel", "job_unique", "job_queue_archive", "job_queue_dlq",
	} {
		if _, err := r.pool.Exec(t.Context(), "DELETE FROM simplequeue."+table); err != nil {
			t.Fatal(err)
		}
	}
}

// follow makes a step.
func (r *replica) follow(ctx context.Context, before State, step Step) error {
	a := step.Action
	exec := func(text string) error {
		_, err := r.pool.Exec(ctx, text, r.ids[a.Job])
		return err
	}
	switch a.What {
	case Insert:
		in, err := r.insert(ctx, a.Job, r.ids[a.Job])
		if err == nil && in.Duplicate {
			err = fmt.Errorf("job %d is skipped", a.Job+1)
		}
		return err
	case PassTime:
		return exec("UPDATE simplequeue.job_waiting SET run_at = clock_timestamp() - interval '1 second' WHERE id = $1")
	case Promote:
		_, err := r.db.Promote(ctx, limit, nil, 100)
		return err
	case Claim:
		return r.claim(ctx, a.Job, step.State.Jobs[a.Job].Fence)
	case Beat:
		return r.beat(ctx, before.Workers[a.Worker], step.State.Workers[a.Worker])
	case Complete, Fail, GiveBack:
		return r.settle(ctx, a.What, before, a)
	case Expire:
		if err := exec("UPDATE simplequeue.job_running SET claimed_at = claimed_at - interval '1 day' WHERE id = $1"); err != nil {
			return err
		}
		return exec(`UPDATE simplequeue.job_lease SET beat_at = beat_at - interval '1 day'
			WHERE (claim_id, claim_nonce) IN (SELECT claim_id, claim_nonce FROM simplequeue.job_running WHERE id = $1)`)
	case Sweep:
		_, err := r.reaper.Once(ctx)
		return err
	case Cancel:
		return r.cancel(ctx, a.Job, step.State.Jobs[a.Job])
	case Archive:
		_, err := r.janitor.Once(ctx)
		return err
	case Crash, Suspend, Wake: // no statement sees them
		return nil
	}
	return fmt.Errorf("no statement for %v", a)
}

// rest does what the model says has nothing to do: a promotion, and a sweep.
func (r *replica) rest(ctx context.Context, next []Step, sweep bool) error {
	has := func(what What) bool {
		return slices.ContainsFunc(next, func(s Step) bool { return s.Action.What == what })
	}
	if !has(Promote) {
		p, err := r.db.Promote(ctx, limit, nil, 100)
		if err != nil || p.Moved != 0 {
			return cmp.Or(err, fmt.Errorf("%d jobs are promoted, want none", p.Moved))
		}
	}
	if sweep && !has(Sweep) {
		found, err := r.reaper.Once(ctx)
		if err != nil || found.Reaped() != 0 {
			return cmp.Or(err, fmt.Errorf("%d jobs are reaped, want none", found.Reaped()))
		}
	}
	return nil
}

func (r *replica) insert(ctx context.Context, i int, id uuid.UUID) (simplequeue.Inserted, error) {
	job := simplequeue.NewJob{ID: id, Queue: queueOf(i), MaxAttempts: int(r.world.Attempts)}
	if r.world.Delayed {
		job.Delay = time.Hour
	}
	if r.world.Keyed {
		job.UniqueKey, job.UniqueGlobal = "key", true
	}
	return r.queue.Insert(ctx, job)
}

// queueOf: a queue each, so that a claim takes the job that it is to take.
func queueOf(i int) string { return fmt.Sprint("q", i) }

func (r *replica) claim(ctx context.Context, i int, f Fence) error {
	req := store.ClaimRequest{
		Worker: uuid.New(), Nonce: int64(rand.Uint64()), LeaseMS: 3_600_000, Limit: 5, Chunk: store.AllChunks,
		First: []int32{1}, Last: []int32{12}, Budget: []int32{5},
	}
	for lane := int16(store.SuspectLane); lane <= 9; lane++ {
		req.Queue, req.Lane, req.After = append(req.Queue, queueOf(i)), append(req.Lane, lane), append(req.After, 0)
	}
	jobs, err := r.db.Claim(ctx, limit, req)
	if err == nil && (len(jobs) != 1 || jobs[0].ID != r.ids[i]) {
		err = fmt.Errorf("claimed %d jobs, want job %d", len(jobs), i+1)
	}
	if err == nil {
		r.fences[f] = store.Claim{ID: jobs[0].ClaimID, Nonce: req.Nonce}
	}
	return err
}

func (r *replica) beat(ctx context.Context, before, after Worker) error {
	var claims []store.Claim
	held := map[int64]bool{}
	for slot, h := range before.Holds {
		if h.Job != 0 {
			c := r.fences[h.Fence]
			claims, held[c.ID] = append(claims, c), after.Holds[slot].Job != 0
		}
	}
	slices.SortFunc(claims, func(a, b store.Claim) int { return int(a.ID - b.ID) })
	var ids, nonces []int64
	for _, c := range claims {
		ids, nonces = append(ids, c.ID), append(nonces, c.Nonce)
	}
	alive, err := r.db.Beat(ctx, limit, ids, nonces)
	for id, want := range held {
		if err == nil && alive[id] != want {
			err = fmt.Errorf("claim %d is alive: %t, want %t", id, alive[id], want)
		}
	}
	return err
}

func (r *replica) settle(ctx context.Context, what What, before State, a Action) error {
	h := before.Workers[a.Worker].Holds[a.Slot]
	c := r.fences[h.Fence]
	text := "went wrong"
	batch := &store.Settle{
		Slot: c.Slot(), ClaimIDs: []int64{c.ID}, Nonces: []int64{c.Nonce}, Lanes: []int16{store.FrontLane}, Keep: []int64{janitor.Forever},
		Texts: []*string{&text}, Stacks: []*string{nil}, RunAtUS: []*int64{nil}, AfterUS: []*int64{new(time.Hour.Microseconds())},
	}
	// The attempt is that of the claim: the worker has it from there.
	attempt := r.attempts(ctx, c)
	var step store.Step
	switch {
	case what == Complete:
		step = janitor.Archive(batch)
	case what == GiveBack:
		step = store.SettleGiveBack(batch)
	case attempt >= int(r.world.Attempts):
		batch.States, batch.Reasons = []string{"failed"}, []string{""}
		step = janitor.DeadLetter(batch)
	default:
		batch.Reasons = []string{"retry"}
		step = store.SettleWaiting(batch)
	}
	moved := 0
	step.Scan = func(pgx.Rows) error { moved++; return nil }
	lock := store.Step{Statement: store.LockClaims, Slot: c.Slot(), Args: []any{batch.ClaimIDs, batch.Nonces}}
	err := r.db.Tx(ctx, limit, lock, step, store.ForgetLeases(batch))
	want := 0
	if before.claimed(a.Job, h.Fence) {
		want = 1
	}
	if err == nil && moved != want {
		err = fmt.Errorf("the outcome settles %d claims, want %d", moved, want)
	}
	return err
}

// attempts is the attempt of a claim, 0 if it is gone.
func (r *replica) attempts(ctx context.Context, c store.Claim) (n int) {
	_ = r.pool.QueryRow(ctx, "SELECT attempt FROM simplequeue.job_running WHERE claim_id = $1 AND claim_nonce = $2", c.ID, c.Nonce).Scan(&n)
	return n
}

func (r *replica) cancel(ctx context.Context, i int, after Job) error {
	state, err := r.queue.Cancel(ctx, r.ids[i], "")
	want := simplequeue.StateCancelled
	if after.told == toldAsked {
		want = simplequeue.StateCancelling
	}
	if err == nil && state != want {
		err = fmt.Errorf("cancel of job %d: %v, want %v", i+1, state, want)
	}
	return err
}

// Every row of a job, in whatever table it is.
const rowsOfJob = `
SELECT 'job_waiting', attempt, crash_count, run_at <= clock_timestamp(), 0, 0, false, '' FROM simplequeue.job_waiting WHERE id = $1
UNION ALL
SELECT 'job_queue', attempt, crash_count, false, 0, 0, false, '' FROM simplequeue.job_queue WHERE id = $1
UNION ALL
SELECT 'job_running', attempt, crash_count, false, r.claim_id, r.claim_nonce,
       EXISTS (SELECT FROM simplequeue.job_cancel AS c WHERE c.claim_id = r.claim_id AND c.claim_nonce = r.claim_nonce), ''
FROM simplequeue.job_running AS r WHERE id = $1
UNION ALL
SELECT 'job_finished', attempt, crash_count, false, 0, 0, false, state FROM simplequeue.job_finished WHERE id = $1
UNION ALL
SELECT 'kept', attempt, crash_count, false, 0, 0, false, state FROM simplequeue.job_queue_archive WHERE id = $1
UNION ALL
SELECT 'kept', attempt, crash_count, false, 0, 0, false, state FROM simplequeue.job_queue_dlq WHERE id = $1`

var (
	tables = map[Place]string{Waiting: "job_waiting", Queued: "job_queue", Running: "job_running", Finished: "job_finished", Kept: "kept"}
	ends   = map[End]string{Live: "", Completed: "completed", Failed: "failed", Cancelled: "cancelled", Bad: "bad_job"}
)

type row struct {
	Place            string
	Attempt, Crashes int
	Due              bool
	Claim, Nonce     int64
	Asked            bool
	State            string
}

// compare reports where the database is not as the model says.
func (r *replica) compare(ctx context.Context, s State) error {
	for i := range r.world.Jobs {
		j := s.Jobs[i]
		var want []row
		if j.Place != Nowhere {
			c := r.fences[j.Fence]
			want = []row{{tables[j.Place], int(j.Attempt), int(j.Crashes), j.Due, c.ID, c.Nonce, j.Asked, ends[j.End]}}
		}
		rows, err := r.pool.Query(ctx, rowsOfJob, r.ids[i])
		if err != nil {
			return err
		}
		got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("job %d is %+v, want %+v", i+1, got, want)
		}
	}
	if !r.world.Keyed {
		return nil
	}
	var holder uuid.UUID
	if err := r.pool.QueryRow(ctx, "SELECT coalesce((SELECT job_id FROM simplequeue.job_unique), $1)", uuid.Nil).Scan(&holder); err != nil {
		return err
	}
	want := uuid.Nil
	if s.Key != 0 {
		want = r.ids[s.Key-1]
	}
	if holder != want {
		return fmt.Errorf("the key is of %v, want %v", holder, want)
	}
	for i := range r.world.Jobs { // those that the model would skip
		if s.Jobs[i].Place == Nowhere && s.Key != 0 {
			in, err := r.insert(ctx, i, uuid.New())
			if err != nil || !in.Duplicate || in.ID != holder {
				return cmp.Or(err, fmt.Errorf("insert of job %d: %+v, want it skipped for %v", i+1, in, holder))
			}
		}
	}
	return nil
}
