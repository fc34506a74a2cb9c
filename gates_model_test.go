package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// gateModel is what must be true of the jobs of one queue, kept beside a database
// that does random things to them. It is told of whatever makes a job live before
// it happens, and of whatever ends one before the engine is, so what it forbids
// never was allowed.
type gateModel struct {
	seed  uint64
	queue string
	fifo  bool
	block bool
	limit int // of live jobs, 0 for none
	pool  *pgxpool.Pool

	mu      sync.Mutex
	jobs    map[uuid.UUID]*modelJob
	running map[string]uuid.UUID // by key
	blocked map[string]uuid.UUID // by which dead job
	holders map[string]uuid.UUID // of unique keys
	faults  []string
}

type modelJob struct {
	key     string // "" for none
	ordered bool
	fair    string
	unique  string
	due     time.Time // not started before
	behind  map[uuid.UUID]bool
	live    bool
	maybe   bool // may have ended: somebody has begun to cancel it, or its hold may be over
	moving  bool // lines up at this moment: who does so too may be before or behind it
	tail    bool // does so until its next start: when its outcome is written is not known
	held    bool
	expires bool // may be deleted: its hold is brief
	extra   bool // was redriven, and does not count for the limit
	runs    int
	verdict string // its last

	next    *modelJob // what it is at this moment replaced by, if that is not too late
	version string    // of next, as the job says when it starts
}

func (m *gateModel) fault(format string, args ...any) {
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

// expect takes jobs in before their transaction commits: they may start at once.
func (m *gateModel) expect(begun time.Time, jobs ...simplequeue.NewJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range jobs {
		m.jobs[j.ID] = m.model(begun, j)
		m.lineUp(j.ID)
	}
	for _, j := range jobs {
		m.jobs[j.ID].moving = true
	}
}

func (m *gateModel) model(begun time.Time, job simplequeue.NewJob) *modelJob {
	brief := job.Hold > 0 && job.Hold < time.Second
	j := &modelJob{
		key: job.OrderKey, ordered: m.fifo || job.OrderKey != "", fair: job.FairnessKey, unique: job.UniqueKey,
		due: begun.Add(job.Delay), held: job.Hold > 0, expires: brief, maybe: brief,
	}
	if m.fifo {
		j.key = ""
	}
	return j
}

// lineUp puts a job behind all live ones of its key.
func (m *gateModel) lineUp(id uuid.UUID) {
	m.jobs[id].live, m.jobs[id].behind = true, m.lineBefore(id, m.jobs[id])
}

// lineBefore are the live jobs of a key that the job would stand behind.
func (m *gateModel) lineBefore(id uuid.UUID, j *modelJob) map[uuid.UUID]bool {
	line := map[uuid.UUID]bool{}
	for other, o := range m.jobs {
		if other != id && o.live && o.ordered && j.ordered && o.key == j.key && !o.moving && !o.tail {
			line[other] = true
		}
	}
	return line
}

// replacing is told before a job that has not started may be replaced: at its
// place if it stays at its gates, else it lines up anew.
func (m *gateModel) replacing(begun time.Time, job simplequeue.NewJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := m.holders[job.UniqueKey]
	j := m.jobs[id]
	if j == nil || !j.live || j.runs > 0 {
		return
	}
	next := m.model(begun, job)
	if next.ordered == j.ordered && next.key == j.key && next.fair == j.fair {
		next.behind = j.behind
	} else {
		next.behind, next.moving, j.moving = m.lineBefore(id, next), true, true
	}
	j.next, j.version = next, string(job.Raw)
}

// replaced ends that.
func (m *gateModel) replaced(key string, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[m.holders[key]]
	if j == nil || j.next == nil {
		return
	}
	if done {
		m.become(m.holders[key])
	}
	j.next, j.moving = nil, false
}

// become makes a job what replaces it.
func (m *gateModel) become(id uuid.UUID) {
	j := m.jobs[id]
	next := j.next
	j.next = nil
	if next.moving { // nobody stands behind it any more
		for other, o := range m.jobs {
			if other != id {
				delete(o.behind, id)
			}
		}
	}
	j.key, j.ordered, j.fair, j.due, j.behind = next.key, next.ordered, next.fair, next.due, next.behind
}

// committed says that jobs have lined up: no more than their queue may hold.
func (m *gateModel) committed(ids ...uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		m.jobs[id].moving = false
	}
	live := 0
	for _, j := range m.jobs {
		if j.live && !j.maybe && !j.extra {
			live++
		}
	}
	if m.limit > 0 && live > m.limit {
		m.fault("%d jobs are live, the limit is %d", live, m.limit)
	}
}

// refused reports whether an insert failed because its queue is full, as it may.
func (m *gateModel) refused(err error) bool {
	return m.limit > 0 && errors.Is(err, simplequeue.ErrQueueFull)
}

// gone is told of jobs that have ended, or were never inserted.
func (m *gateModel) gone(id uuid.UUID) {
	m.jobs[id].live = false
	for _, j := range m.jobs {
		delete(j.behind, id)
		if j.next != nil {
			delete(j.next.behind, id)
		}
	}
}

// forget drops a job that was not inserted.
func (m *gateModel) forget(id uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone(id)
	delete(m.jobs, id)
}

// inserted judges the answer to an insert with a unique key.
func (m *gateModel) inserted(job simplequeue.NewJob, in simplequeue.Inserted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, held := m.holders[job.UniqueKey]
	if !in.Duplicate {
		if o := m.jobs[old]; held && o.live && !o.maybe {
			m.fault("%v holds the key %q beside %v", in.ID, job.UniqueKey, old)
		}
		m.holders[job.UniqueKey] = in.ID
		return
	}
	if !held || in.ID != old {
		m.fault("%v is said to hold the key %q, which %v does", in.ID, job.UniqueKey, old)
	}
	m.gone(job.ID)
	delete(m.jobs, job.ID)
}

func (m *gateModel) start(job *simplequeue.Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[job.ID]
	if j == nil {
		m.fault("%v started, which was never inserted", job.ID)
		return
	}
	if j.next != nil && string(job.Raw) == j.version {
		m.become(job.ID)
	} else if j.next != nil { // too late
		j.next, j.moving = nil, false
	}
	j.runs++
	if early := time.Until(j.due); j.runs == 1 && early > 2*time.Millisecond {
		m.fault("%v started %v early", job.ID, early)
	}
	if j.held {
		m.fault("%v started while it was held", job.ID)
	}
	if !j.live {
		m.fault("%v started after its end", job.ID)
	}
	if !j.ordered {
		return
	}
	if other, ok := m.running[j.key]; ok {
		m.fault("%v of %q started while %v ran", job.ID, j.key, other)
	}
	m.running[j.key], j.moving, j.tail = job.ID, false, false
	for other := range j.behind {
		if o := m.jobs[other]; !o.maybe && o.next == nil {
			m.fault("%v of %q started before %v had ended", job.ID, j.key, other)
		}
	}
	if dead, ok := m.blocked[j.key]; ok && dead != job.ID && !m.jobs[dead].maybe {
		m.fault("%v started although the dead %v closes %q", job.ID, dead, j.key)
	}
}

func (m *gateModel) end(job *simplequeue.Job, verdict string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[job.ID]
	if j == nil {
		return // a fault already
	}
	if j.verdict = verdict; j.ordered {
		delete(m.running, j.key)
	}
	switch verdict {
	case "tail":
		if j.ordered {
			m.gone(job.ID)
			m.lineUp(job.ID)
			j.tail = true
		}
	case "dead":
		if m.gone(job.ID); m.block && j.ordered {
			m.blocked[j.key] = job.ID
		}
	case "complete":
		m.gone(job.ID)
	}
}

// redriven reports whether the holder of a key has been redriven: it may have run
// and be replaced all the same.
func (m *gateModel) redriven(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[m.holders[key]]
	return j != nil && j.extra
}

// redriving is told before a dead job is made live again: at its old place if it
// closes its key, else at the end.
func (m *gateModel) redriving(id uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[id]
	j.extra = true
	if m.blocked[j.key] != id || !j.ordered {
		m.lineUp(id)
		j.moving = true
		return
	}
	delete(m.blocked, j.key)
	j.live, j.behind = true, map[uuid.UUID]bool{}
	for other, o := range m.jobs {
		if other != id && o.live && o.ordered && o.key == j.key {
			o.behind[id] = true
		}
	}
}

// notRedriven takes that back: it had not reached the dead letters, or its unique
// key is taken.
func (m *gateModel) notRedriven(id uuid.UUID, closes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone(id); closes {
		m.blocked[m.jobs[id].key] = id
	}
}

// process is the handler: what it does, the job's id says.
func (m *gateModel) process(ctx context.Context, job *simplequeue.Job) error {
	m.start(job)
	verdict := map[byte]string{0: "retry", 1: "reschedule", 2: "tail", 3: "dead", 4: "panic"}[job.ID[15]%12]
	if verdict == "dead" && len(job.Errors) > 0 || verdict != "dead" && job.Attempt+job.ReprocessCount > 2 || verdict == "" {
		verdict = "complete"
	}
	if job.ID[14]%4 == 0 {
		select {
		case <-time.After(time.Duration(job.ID[13]%8) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		m.mu.Lock()
		if j := m.jobs[job.ID]; j != nil && !j.maybe {
			m.fault("%v has lost its context: %v", job.ID, context.Cause(ctx))
		}
		m.mu.Unlock()
	}
	m.end(job, verdict)
	if verdict == "complete" && job.ID[11]%4 == 0 {
		return pgx.BeginFunc(ctx, m.pool, func(tx pgx.Tx) error { return job.CompleteTx(ctx, tx) })
	}
	again := time.Duration(job.ID[12]%20) * time.Millisecond
	switch verdict {
	case "retry":
		return simplequeue.RetryAfter(again, errors.New("once more"))
	case "reschedule":
		return simplequeue.RescheduleAfter(again)
	case "tail":
		return simplequeue.RescheduleToTail(again)
	case "dead":
		return simplequeue.Critical(errors.New("no"))
	case "panic":
		panic("at the disco")
	}
	return nil
}

// TestGateModel does random things with jobs: inserts of one and of many, with
// order keys, shares, delays, holds, priorities and unique keys whose holders they
// may replace, alone and in transactions that are rolled back, into queues of which
// some have a limit; cancels, changes, redrives, outcomes of all sorts, some in
// transactions of their handlers, holds that end, and workers that claim jobs and
// are never heard of again. Nothing may start that the model forbids, and at last
// everything has ended as it says and no gate has a row left, nor a slot a job.
//
// SIMPLEQUEUE_TEST_SCHEDULES=5000 runs so many schedules instead of forty;
// SIMPLEQUEUE_TEST_SEED is the seed of the first, the others follow it.
func TestGateModel(t *testing.T) {
	t.Parallel()
	seed, schedules := uint64(time.Now().UnixNano()), uint64(40)
	for name, n := range map[string]*uint64{"SIMPLEQUEUE_TEST_SEED": &seed, "SIMPLEQUEUE_TEST_SCHEDULES": &schedules} {
		if text := os.Getenv(name); text != "" {
			var err error
			if *n, err = strconv.ParseUint(text, 10, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	for ; schedules > 0 && !t.Failed(); schedules -= min(100, schedules) {
		t.Run(fmt.Sprint("from ", seed), func(t *testing.T) { gateSchedules(t, seed, min(100, schedules)) })
		seed += 100
	}
}

// gateSchedules runs schedules side by side on one database, each in a queue of
// its own.
func gateSchedules(t *testing.T, seed, n uint64) {
	pool := pgtest.New(t)
	models := map[string]*gateModel{}
	// The engine keeps its leases, however busy the machine: who dies here has
	// claimed by hand.
	opts := simplequeue.Options{
		Logger: slog.New(slog.DiscardHandler), MaxAttempts: 1000, MaxCrashes: 1000,
		ReaperInterval: 50 * time.Millisecond, JanitorInterval: 100 * time.Millisecond,
		Queues: map[string]simplequeue.QueueOptions{},
	}
	opts.Backoff = simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { return time.Millisecond })
	todo := make(chan *gateModel, n)
	for i := range n {
		m := &gateModel{
			seed: seed + i, queue: fmt.Sprint("m", i), fifo: i%10 == 9, block: i%2 == 0, pool: pool, jobs: map[uuid.UUID]*modelJob{},
			running: map[string]uuid.UUID{}, blocked: map[string]uuid.UUID{}, holders: map[string]uuid.UUID{},
		}
		if i%4 == 1 {
			m.limit = 6
		}
		models[m.queue] = m
		opts.Queues[m.queue] = simplequeue.QueueOptions{FIFO: m.fifo, BlockDead: m.block}
		todo <- m
	}
	close(todo)
	opts.Handlers = []simplequeue.Handler{simplequeue.HandlerFunc("m*", func(ctx context.Context, job *simplequeue.Job) error {
		return models[job.Queue].process(ctx, job)
	})}
	q := newQueue(t, pool, opts)
	for _, m := range models {
		if m.limit > 0 {
			if err := q.SetQueueLimit(t.Context(), m.queue, m.limit); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop := start(t, q)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for m := range todo {
				m.run(t, q, pool)
			}
		})
	}
	wg.Wait()
	if !t.Failed() {
		awaitNoGates(t, pool)
		if n := countRows(t, pool, "job_slot WHERE job_id IS NOT NULL"); n != 0 {
			t.Errorf("%d slots are taken, and no job is live", n)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for _, m := range models {
		m.mu.Lock()
		for _, f := range m.faults {
			t.Errorf("SIMPLEQUEUE_TEST_SEED=%d SIMPLEQUEUE_TEST_SCHEDULES=1: %s", m.seed, f)
		}
		m.mu.Unlock()
	}
}

func (m *gateModel) run(t *testing.T, q *simplequeue.SimpleQueue, pool *pgxpool.Pool) {
	rng := rand.New(rand.NewPCG(m.seed, 0))
	var ids, held []uuid.UUID
	for range 18 {
		more, err := m.step(t.Context(), q, pool, rng, ids, &held)
		if err != nil {
			t.Errorf("SIMPLEQUEUE_TEST_SEED=%d: %v", m.seed, err)
			return
		}
		ids = append(ids, more...)
		if rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
		}
	}
	if err := m.commit(t.Context(), q, held); err != nil {
		t.Errorf("SIMPLEQUEUE_TEST_SEED=%d: commit of held jobs: %v", m.seed, err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		over, err := m.finish(t.Context(), q)
		if err != nil {
			t.Errorf("SIMPLEQUEUE_TEST_SEED=%d: %v", m.seed, err)
			return
		}
		if over {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("SIMPLEQUEUE_TEST_SEED=%d: jobs are live that nothing holds back", m.seed)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := m.judge(t.Context(), q); err != nil {
		t.Errorf("SIMPLEQUEUE_TEST_SEED=%d: %v", m.seed, err)
	}
}

// step does one thing, and returns the jobs that it has inserted.
func (m *gateModel) step(ctx context.Context, q *simplequeue.SimpleQueue, pool *pgxpool.Pool, rng *rand.Rand, ids []uuid.UUID, held *[]uuid.UUID) ([]uuid.UUID, error) {
	job := simplequeue.NewJob{Queue: m.queue, OrderKey: []string{"a", "b", "c", ""}[rng.IntN(4)], Priority: rng.IntN(10), ID: randomID(rng)}
	if rng.IntN(4) == 0 {
		job.Delay = time.Duration(rng.IntN(80)) * time.Millisecond
	}
	if rng.IntN(4) == 0 {
		job.FairnessKey = []string{"x", "y"}[rng.IntN(2)]
	}
	what := rng.IntN(20)
	if what >= 12 && len(ids) == 0 {
		what = 0
	}
	switch {
	case what < 7: // one, with an id known before it can start
		if rng.IntN(2) == 0 {
			job.UniqueKey, job.Raw = fmt.Sprint("u", rng.IntN(3)), job.ID[:]
			if rng.IntN(2) == 0 && job.Delay == 0 {
				job.Delay = time.Duration(rng.IntN(80)) * time.Millisecond // time to be replaced in
			}
			if rng.IntN(2) == 0 && !m.redriven(job.UniqueKey) {
				job.Unique.OnConflict = simplequeue.ConflictReplace
				m.replacing(time.Now(), job)
			}
		} else if rng.IntN(4) == 0 {
			job.Hold = []time.Duration{time.Hour, time.Duration(1+rng.IntN(30)) * time.Millisecond}[rng.IntN(2)]
		}
		m.expect(time.Now(), job)
		in, err := q.Insert(ctx, job)
		m.replaced(job.UniqueKey, in.Replaced)
		switch {
		case errors.Is(err, simplequeue.ErrUniqueContention), m.refused(err):
			m.forget(job.ID)
			return nil, nil
		case err != nil:
			return nil, err
		case job.UniqueKey != "":
			m.inserted(job, in)
		}
		if in.Duplicate {
			return nil, nil
		}
		m.committed(job.ID)
		if job.Hold > 0 {
			*held = append(*held, job.ID)
		}
		return []uuid.UUID{job.ID}, nil
	case what < 12: // many, in a transaction
		var jobs []simplequeue.NewJob
		var list []uuid.UUID
		for range 1 + rng.IntN(4) {
			job.ID = randomID(rng)
			jobs, list = append(jobs, job), append(list, job.ID)
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		begun := time.Now()
		if _, err := q.InsertManyTx(ctx, tx, jobs); err != nil || rng.IntN(3) == 0 {
			if m.refused(err) {
				err = nil
			}
			return nil, err
		}
		m.expect(begun, jobs...)
		err = tx.Commit(ctx)
		m.committed(list...)
		return list, err
	case what < 14: // cancel
		id := ids[rng.IntN(len(ids))]
		m.mu.Lock()
		m.jobs[id].maybe = true
		m.mu.Unlock()
		return nil, insist(func() error { _, err := q.Cancel(ctx, id, "test"); return err })
	case what < 15: // a worker claims and dies
		_, err := q.Claim(ctx, m.queue, 2, 100*time.Millisecond)
		return nil, err
	case what < 17:
		priority := rng.IntN(10)
		id := ids[rng.IntN(len(ids))]
		return nil, insist(func() error { return q.Change(ctx, id, simplequeue.Change{Priority: &priority}) })
	case what < 19:
		return nil, m.redrive(ctx, q, ids[rng.IntN(len(ids))])
	default:
		list := *held
		*held = nil
		return nil, m.commit(ctx, q, list)
	}
}

// insist calls again where the job kept moving. That one has started or ended, or
// is gone because its hold was over, is no error.
func insist(do func() error) (err error) {
	for range 20 {
		err = do()
		if err == nil || errors.Is(err, simplequeue.ErrStarted) || errors.Is(err, simplequeue.ErrFinished) || errors.Is(err, simplequeue.ErrNotFound) {
			return nil
		}
		if !strings.Contains(err.Error(), "try again") {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

func (m *gateModel) redrive(ctx context.Context, q *simplequeue.SimpleQueue, id uuid.UUID) error {
	m.mu.Lock()
	j := m.jobs[id]
	dead, closes := !j.live && j.verdict == "dead" && !j.maybe, j.ordered && m.blocked[j.key] == id
	m.mu.Unlock()
	if !dead {
		return nil
	}
	m.redriving(id)
	done, err := q.Redrive(ctx, simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{})
	if err != nil {
		return err
	}
	if len(done.IDs) == 0 {
		m.notRedriven(id, closes)
		return nil
	}
	m.committed(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if j.unique != "" {
		m.holders[j.unique] = id
	}
	return nil
}

// commit commits held jobs: all but those that were cancelled, or whose hold is
// over.
func (m *gateModel) commit(ctx context.Context, q *simplequeue.SimpleQueue, held []uuid.UUID) error {
	m.mu.Lock()
	want := 0
	for _, id := range held {
		if m.jobs[id].held = false; !m.jobs[id].maybe {
			want++
		}
	}
	m.mu.Unlock()
	done, err := q.CommitHeld(ctx, held...)
	if err == nil && len(done) < want {
		err = fmt.Errorf("%d committed, want %d", len(done), want)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range done {
		m.jobs[id].expires = false
	}
	return err
}

// finish opens keys that are closed, and reports whether all jobs have ended.
func (m *gateModel) finish(ctx context.Context, q *simplequeue.SimpleQueue) (over bool, err error) {
	found, err := q.Count(ctx, simplequeue.Filter{Queue: m.queue})
	if err != nil {
		return false, err
	}
	over = true
	for state := range found {
		over = over && state.Terminal()
	}
	// After the jobs: the last one may just have closed its key.
	blocked, err := q.BlockedKeys(ctx, m.queue)
	if err != nil {
		return false, err
	}
	for _, b := range blocked {
		m.mu.Lock()
		delete(m.blocked, b.OrderKey)
		m.mu.Unlock()
		if err := q.ReleaseKey(ctx, b.Queue, b.OrderKey); err != nil {
			return false, err
		}
	}
	return over && len(blocked) == 0, nil
}

// judge compares how jobs have ended with what the model says.
func (m *gateModel) judge(ctx context.Context, q *simplequeue.SimpleQueue) error {
	list, err := q.List(ctx, simplequeue.Filter{Queue: m.queue, Limit: 1000})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[uuid.UUID]bool{}
	for i := range list {
		info, j := &list[i], m.jobs[list[i].ID]
		if seen[info.ID] = true; j == nil {
			m.fault("%v is there, which was never inserted", info.ID)
			continue
		}
		want := simplequeue.StateCompleted
		if j.verdict == "dead" {
			want = simplequeue.StateCritical
		}
		if info.State != want && (info.State != simplequeue.StateCancelled || !j.maybe) {
			m.fault("%v is %s, and its last verdict %q", info.ID, info.State, j.verdict)
		}
	}
	for id := range m.jobs {
		if !seen[id] && !m.jobs[id].expires {
			m.fault("%v is nowhere", id)
		}
	}
	return nil
}

func randomID(rng *rand.Rand) (id uuid.UUID) {
	for i := range id {
		id[i] = byte(rng.IntN(256))
	}
	return id
}
