package simplequeue_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// Every state of a job has its reasons, all that apply, each with a sentence.
func TestWhyAJobIsNotRunning(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running, finish := make(chan uuid.UUID), make(chan struct{})
	hold := func(_ context.Context, job *simplequeue.Job) error {
		running <- job.ID
		<-finish
		return nil
	}
	opts := simplequeue.Options{
		Name:     "the worker",
		Handlers: []simplequeue.Handler{simplequeue.NewMux("mux").HandleFunc("known", hold), simplequeue.HandlerFunc("held*", hold)},
		Queues:   map[string]simplequeue.QueueOptions{"held": {Permits: 1}},
	}
	q := newQueue(t, pool, opts)
	stop := start(t, q)
	eventually(t, "the worker is registered", func() bool {
		w, err := q.Workers(t.Context())
		return err == nil && len(w) == 1 && w[0].Alive
	})
	why := func(id uuid.UUID, want ...simplequeue.FindingCode) []simplequeue.Finding {
		t.Helper()
		list, err := q.Why(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		var got []simplequeue.FindingCode
		for _, h := range list {
			got = append(got, h.Code)
			if !strings.HasSuffix(h.Text, ".") {
				t.Errorf("%s: %q is no sentence", h.Code, h.Text)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v: %+v", got, want, list)
		}
		return list
	}
	put := func(job simplequeue.NewJob) uuid.UUID { t.Helper(); return insert(t, q, job) }

	why(uuid.New(), simplequeue.FindingUnknownJob)

	first := put(simplequeue.NewJob{Queue: "held"})
	<-running
	if h := why(first, simplequeue.FindingRunning)[0]; !strings.Contains(h.Text, "the worker") || h.Worker == uuid.Nil {
		t.Errorf("running: %+v", h)
	}
	second := put(simplequeue.NewJob{Queue: "held"})
	third := put(simplequeue.NewJob{Queue: "held"})
	low := put(simplequeue.NewJob{Queue: "held", Priority: 9})
	why(second, simplequeue.FindingNext)
	if h := why(third, simplequeue.FindingBehind)[0]; h.Jobs != 1 {
		t.Errorf("behind %d jobs, want 1", h.Jobs)
	}
	if h := why(low, simplequeue.FindingBehind)[0]; h.Jobs != 2 {
		t.Errorf("behind %d jobs, want 2", h.Jobs)
	}

	later := put(simplequeue.NewJob{Queue: "held", Delay: time.Hour})
	if h := why(later, simplequeue.FindingWaits)[0]; time.Until(h.Until) < 50*time.Minute {
		t.Errorf("waits until %v", h.Until)
	}
	why(put(simplequeue.NewJob{Queue: "nobody"}), simplequeue.FindingNoWorker)
	why(put(simplequeue.NewJob{Queue: "nobody", Delay: time.Hour}), simplequeue.FindingWaits, simplequeue.FindingNoWorker)
	parked := put(simplequeue.NewJob{Queue: "mux", Kind: "unheard of"})
	eventually(t, "the job is parked", func() bool { return state(t, q, parked) == simplequeue.StateWaiting })
	why(parked, simplequeue.FindingUnknownKind)

	if err := q.Pause(t.Context(), "held", "the moon is full"); err != nil {
		t.Fatal(err)
	}
	if h := why(third, simplequeue.FindingPaused, simplequeue.FindingBehind)[0]; !strings.Contains(h.Text, "the moon is full") {
		t.Errorf("paused: %s", h.Text)
	}
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_queue SET lane = -2, crash_count = 1 WHERE id = $1", second); err != nil {
		t.Fatal(err)
	}
	why(second, simplequeue.FindingPaused, simplequeue.FindingSuspect)

	if _, err := q.Cancel(t.Context(), first, ""); err != nil {
		t.Fatal(err)
	}
	why(first, simplequeue.FindingRunning, simplequeue.FindingCancelling)
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_worker SET seen_at = now() - interval '2 minutes'"); err != nil {
		t.Fatal(err)
	}
	why(third, simplequeue.FindingPaused, simplequeue.FindingNoWorker)
	close(finish)
	awaitState(t, q, first, simplequeue.StateCompleted)
	why(first, simplequeue.FindingEnded)
	if _, err := q.Cancel(t.Context(), third, "not wanted"); err != nil {
		t.Fatal(err)
	}
	if h := why(third, simplequeue.FindingEnded)[0]; !strings.Contains(h.Text, "not wanted") {
		t.Errorf("ended: %s", h.Text)
	}

	if err := stop(); err != nil { // nobody sweeps from here on
		t.Fatal(err)
	}
	byHand := put(simplequeue.NewJob{Queue: "hand"})
	leases, err := q.Claim(t.Context(), "hand", 1, time.Minute)
	if err != nil || len(leases) != 1 {
		t.Fatal(leases, err)
	}
	if h := why(byHand, simplequeue.FindingRunning)[0]; !strings.Contains(h.Text, "by hand") || !strings.Contains(h.Text, "no heartbeat") {
		t.Errorf("by hand: %s", h.Text)
	}
	over := func() {
		t.Helper()
		h := why(byHand, simplequeue.FindingRunning, simplequeue.FindingLeaseOver)[1]
		if ago := time.Since(h.Until); ago < 50*time.Second || ago > 70*time.Second || h.Worker == uuid.Nil {
			t.Errorf("its lease of a minute has not been renewed for two: %+v", h)
		}
	}
	execute(t, pool, "UPDATE simplequeue.job_running SET claimed_at = now() - interval '2 minutes'",
		`INSERT INTO simplequeue.job_sweep (name, swept_at, continuous_since) VALUES ('reaper', now(), now())
		 ON CONFLICT (name) DO UPDATE SET continuous_since = now()`)
	why(byHand, simplequeue.FindingRunning) // after an outage leases begin anew
	execute(t, pool, "UPDATE simplequeue.job_sweep SET continuous_since = now() - interval '1 day' WHERE name = 'reaper'")
	over()
	if err := leases[0].Extend(t.Context()); err != nil {
		t.Fatal(err)
	}
	why(byHand, simplequeue.FindingRunning)
	execute(t, pool, "UPDATE simplequeue.job_running SET claimed_at = now() - interval '1 hour'",
		"UPDATE simplequeue.job_lease SET beat_at = now() - interval '2 minutes'")
	over()
}

// Queues and workers say what there is, in every state.
func TestQueuesAndWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running := make(chan struct{})
	finish := make(chan struct{})
	defer close(finish)
	opts := handler("a", func(context.Context, *simplequeue.Job) error { running <- struct{}{}; <-finish; return nil })
	opts.Handlers = append(opts.Handlers, simplequeue.NewMux("m*").HandleFunc("x", nil).HandleFunc("y", nil))
	opts.Name = "w"
	opts.Queues = map[string]simplequeue.QueueOptions{"a": {Permits: 2}}
	q := newQueue(t, pool, opts)
	start(t, q)
	for range 5 {
		insert(t, q, simplequeue.NewJob{Queue: "a"})
	}
	<-running
	<-running
	insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Hour})
	dead := insert(t, q, simplequeue.NewJob{Queue: "b"})
	bury(t, pool, q, simplequeue.Filter{IDs: []uuid.UUID{dead}})
	list, err := q.List(t.Context(), simplequeue.Filter{Queue: "a", States: []simplequeue.State{simplequeue.StateRunning}})
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if _, err := q.Cancel(t.Context(), list[0].ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := q.Pause(t.Context(), "c", "why not"); err != nil {
		t.Fatal(err)
	}
	queues, err := q.Queues(t.Context())
	if err != nil || len(queues) != 3 {
		t.Fatalf("Queues: %+v, %v", queues, err)
	}
	if !queues[2].Paused || queues[2].PauseReason != "why not" || queues[2].PausedAt.IsZero() {
		t.Errorf("c: %+v", queues[2])
	}
	queues[2].PausedAt = time.Time{}
	want := []simplequeue.QueueInfo{
		{Name: "a", Waiting: 1, Pending: 3, Running: 1, Cancelling: 1},
		{Name: "b", Dead: 1},
		{Name: "c", Paused: true, PauseReason: "why not"},
	}
	if diff := cmp.Diff(want, queues); diff != "" {
		t.Error(diff)
	}
	workers, err := q.Workers(t.Context())
	if err != nil || len(workers) != 1 {
		t.Fatalf("Workers: %+v, %v", workers, err)
	}
	w := workers[0]
	if w.Name != "w" || !w.Alive || w.Running != 2 || !cmp.Equal(w.Queues, []string{"a", "m*"}) || !cmp.Equal(w.Kinds, map[string][]string{"m*": {"x", "y"}}) {
		t.Errorf("%+v", w)
	}
}
