package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// orderModel is what must be true of ordered jobs, kept beside a database that
// does random things. It knows of each job which jobs of its key it is behind.
type orderModel struct {
	mu      sync.Mutex
	live    map[string]map[uuid.UUID]bool    // by key
	behind  map[uuid.UUID]map[uuid.UUID]bool // jobs that have to end, or go to the tail, before it starts
	maybe   map[uuid.UUID]bool               // somebody has begun to cancel it
	moving  map[uuid.UUID]bool               // is being committed, or goes to the tail: who lines up meanwhile may be before or behind it
	running map[string]uuid.UUID
	blocked map[string]uuid.UUID // by which dead job
	runs    map[uuid.UUID]int
	faults  []string
}

func newOrderModel() *orderModel {
	return &orderModel{
		live: map[string]map[uuid.UUID]bool{}, behind: map[uuid.UUID]map[uuid.UUID]bool{}, maybe: map[uuid.UUID]bool{}, moving: map[uuid.UUID]bool{},
		running: map[string]uuid.UUID{}, blocked: map[string]uuid.UUID{}, runs: map[uuid.UUID]int{},
	}
}

func (m *orderModel) fault(format string, args ...any) {
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

// expect takes in jobs before their transaction commits: they may start at once.
func (m *orderModel) expect(key string, ids ...uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		m.lineUp(key, id)
	}
	for _, id := range ids {
		m.moving[id] = true
	}
}

func (m *orderModel) committed(ids ...uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		delete(m.moving, id)
	}
}

func (m *orderModel) lineUp(key string, id uuid.UUID) {
	if m.live[key] == nil {
		m.live[key] = map[uuid.UUID]bool{}
	}
	before := map[uuid.UUID]bool{}
	for other := range m.live[key] {
		if !m.moving[other] {
			before[other] = true
		}
	}
	m.behind[id], m.live[key][id] = before, true
}

// gone is told of jobs that have ended or were never inserted.
func (m *orderModel) gone(key string, id uuid.UUID) {
	delete(m.live[key], id)
	for _, before := range m.behind {
		delete(before, id)
	}
}

func (m *orderModel) start(job *simplequeue.Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runs[job.ID]++
	if job.OrderKey == "" {
		return
	}
	if other, ok := m.running[job.OrderKey]; ok {
		m.fault("%v of %s started while %v ran", job.ID, job.OrderKey, other)
	}
	m.running[job.OrderKey] = job.ID
	delete(m.moving, job.ID)
	for other := range m.behind[job.ID] {
		if !m.maybe[other] {
			m.fault("%v of %s started before %v had ended", job.ID, job.OrderKey, other)
		}
	}
	if dead, ok := m.blocked[job.OrderKey]; ok && !m.maybe[dead] {
		m.fault("%v started although a dead job blocks %s", job.ID, job.OrderKey)
	}
	if !m.live[job.OrderKey][job.ID] {
		m.fault("%v of %s started after its end", job.ID, job.OrderKey)
	}
}

func (m *orderModel) end(job *simplequeue.Job, verdict string, block bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if job.OrderKey == "" {
		return
	}
	delete(m.running, job.OrderKey)
	switch verdict {
	case "tail":
		m.gone(job.OrderKey, job.ID)
		m.lineUp(job.OrderKey, job.ID)
		m.moving[job.ID] = true
	case "dead":
		m.gone(job.OrderKey, job.ID)
		if block {
			m.blocked[job.OrderKey] = job.ID
		}
	case "complete":
		m.gone(job.OrderKey, job.ID)
	}
}

// TestOrderModel does random things with ordered jobs: inserts of one and of
// many, with delays, priorities and unique keys, alone and in transactions that
// are rolled back, cancels, outcomes of all sorts, and workers that claim jobs
// and are never heard of again. Nothing may start that the model forbids, and at
// last everything has ended and no gate has a row left.
func TestOrderModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SIMPLEQUEUE_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(3) {
		t.Run(strconv.FormatUint(n, 10), func(t *testing.T) {
			t.Parallel()
			orderSchedule(t, seed+n)
		})
	}
	t.Logf("SIMPLEQUEUE_TEST_SEED=%d", seed)
}

func orderSchedule(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	block := rng.IntN(2) == 0
	pool := pgtest.New(t)
	m := newOrderModel()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, f := range m.faults {
			t.Error(f)
		}
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	opts := briefLeases(simplequeue.Options{
		Logger: slog.New(slog.DiscardHandler), MaxAttempts: 1000, MaxCrashes: 1000, ReaperInterval: 50 * time.Millisecond,
		Queues: map[string]simplequeue.QueueOptions{"q": {BlockDead: block}},
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
			m.start(job)
			verdict := map[byte]string{0: "retry", 1: "reschedule", 2: "tail", 3: "dead", 4: "panic"}[job.ID[15]%12]
			if verdict != "dead" && job.Attempt+job.ReprocessCount > 2 || verdict == "" {
				verdict = "complete"
			}
			if job.ID[14]%4 == 0 {
				select {
				case <-time.After(time.Duration(job.ID[13]%8) * time.Millisecond):
				case <-ctx.Done(): // cancelled, or its lease was lost
				}
			}
			if ctx.Err() != nil {
				m.mu.Lock()
				if !m.maybe[job.ID] {
					m.fault("%v has lost its context: %v", job.ID, context.Cause(ctx))
				}
				m.mu.Unlock()
			}
			m.end(job, verdict, block)
			switch verdict {
			case "retry":
				return simplequeue.RetryAfter(time.Duration(job.ID[12]%20)*time.Millisecond, errors.New("once more"))
			case "reschedule":
				return simplequeue.RescheduleAfter(time.Duration(job.ID[12]%20) * time.Millisecond)
			case "tail":
				return simplequeue.RescheduleToTail(time.Duration(job.ID[12]%20) * time.Millisecond)
			case "dead":
				return simplequeue.Critical(errors.New("no"))
			case "panic":
				panic("at the disco")
			}
			return nil
		})},
	})
	opts.Backoff = simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { return time.Millisecond })
	q := newQueue(t, pool, opts)
	start(t, q)
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}

	var ids []uuid.UUID
	keys := map[uuid.UUID]string{}
	for range 150 {
		key := []string{"a", "b", "c", "d", ""}[rng.IntN(5)]
		job := simplequeue.NewJob{Queue: "q", OrderKey: key, Priority: rng.IntN(10)}
		if rng.IntN(4) == 0 {
			job.Delay = time.Duration(rng.IntN(100)) * time.Millisecond
		}
		switch rng.IntN(6) {
		case 0, 1: // one, with an id known before it can start
			job.ID = randomID(rng)
			if rng.IntN(2) == 0 {
				job.UniqueKey = fmt.Sprint("u", rng.IntN(3))
			}
			m.expect(key, job.ID)
			in, err := q.Insert(t.Context(), job)
			m.committed(job.ID)
			if errors.Is(err, simplequeue.ErrUniqueContention) {
				in.Duplicate = true
			} else if err != nil {
				t.Fatal(err)
			}
			if in.Duplicate {
				m.mu.Lock()
				m.gone(key, job.ID)
				m.mu.Unlock()
				continue
			}
			ids, keys[job.ID] = append(ids, job.ID), key
		case 2, 3: // many, in a transaction
			var jobs []simplequeue.NewJob
			for range 1 + rng.IntN(4) {
				job.ID = randomID(rng)
				jobs = append(jobs, job)
			}
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := q.InsertManyTx(t.Context(), tx, jobs); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(3) == 0 {
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				continue
			}
			var list []uuid.UUID
			for _, j := range jobs {
				list, keys[j.ID] = append(list, j.ID), key
			}
			ids = append(ids, list...)
			m.expect(key, list...)
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.committed(list...)
		case 4: // cancel
			if len(ids) == 0 {
				continue
			}
			id := ids[rng.IntN(len(ids))]
			m.mu.Lock()
			m.maybe[id] = true
			m.mu.Unlock()
			if _, err := q.Cancel(t.Context(), id, "test"); err != nil && !errors.Is(err, simplequeue.ErrFinished) {
				t.Logf("cancel: %v", err) // it kept moving
			}
		case 5: // a worker claims and dies
			claim := store.ClaimRequest{
				Worker: uuid.New(), Nonce: rng.Int64(), LeaseMS: 100, Limit: 2, First: []int32{1}, Last: []int32{10}, Budget: []int32{2}, Chunk: store.AllChunks,
			}
			for lane := range int16(10) {
				claim.Queue, claim.Lane, claim.After = append(claim.Queue, "q"), append(claim.Lane, lane), append(claim.After, 0)
			}
			if _, err := db.Claim(t.Context(), time.Second, claim); err != nil {
				t.Fatal(err)
			}
		}
		if rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
		}
	}
	eventually(t, "everything has ended", func() bool {
		blocked, err := q.BlockedKeys(t.Context(), "q")
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocked {
			m.mu.Lock()
			delete(m.blocked, b.OrderKey)
			m.mu.Unlock()
			if err := q.ReleaseKey(t.Context(), b.Queue, b.OrderKey); err != nil {
				t.Fatal(err)
			}
		}
		live := 0
		for state, n := range counts(t, q, "q") {
			if !state.Terminal() {
				live += int(n)
			}
		}
		return live == 0 && len(blocked) == 0
	})
	awaitNoGates(t, pool)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if m.runs[id] == 0 && !m.maybe[id] {
			t.Errorf("%v of %q never ran", id, keys[id])
		}
	}
}

func randomID(rng *rand.Rand) (id uuid.UUID) {
	for i := range id {
		id[i] = byte(rng.IntN(256))
	}
	return id
}
