package simplequeue_test

import (
	"context"
	"errors"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// Queues with work hold the global permits by their weights; one whose jobs come
// late gets its share as permits come free.
func TestQueueWeights(t *testing.T) {
	t.Parallel()
	end := make(chan struct{}) // ends one job of the busy queue
	block := func(ctx context.Context, job *simplequeue.Job) error {
		if job.Queue == "idle" {
			return nil
		}
		select {
		case <-end:
		case <-ctx.Done():
		}
		return nil
	}
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("*", block)}, GlobalPermits: 8, QueuePermits: 8,
		Queues: map[string]simplequeue.QueueOptions{"heavy": {Weight: 3}, "late": {Weight: 4}},
		Stop:   simplequeue.StopTimeouts{Drain: -1},
	})
	fill := func(queue string) {
		t.Helper()
		if _, err := q.InsertMany(t.Context(), make60(queue)); err != nil {
			t.Fatal(err)
		}
	}
	fill("heavy")
	fill("light")
	insert(t, q, simplequeue.NewJob{Queue: "idle"})
	start(t, q)
	held := func(heavy, light, late int) func() bool {
		return func() bool {
			s := q.Stats().Queues
			return s["heavy"].Running == heavy && s["light"].Running == light && s["late"].Running == late
		}
	}
	eventually(t, "the permits are shared 3 to 1", held(6, 2, 0))
	fill("late")
	for range 40 {
		end <- struct{}{}
	}
	eventually(t, "the permits are shared 3 to 1 to 4", held(3, 1, 4))
}

func make60(queue string) []simplequeue.NewJob {
	jobs := make([]simplequeue.NewJob, 60)
	for i := range jobs {
		jobs[i].Queue = queue
	}
	return jobs
}

func TestWeightAndAgingAreChecked(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for want, o := range map[string]simplequeue.Options{
		`Queues["a"].Weight`: {Queues: map[string]simplequeue.QueueOptions{"a": {Weight: 1001}}},
		`Queues["b"].Weight`: {Queues: map[string]simplequeue.QueueOptions{"b": {Weight: -1}}},
		`Queues["a"].Aging`:  {Queues: map[string]simplequeue.QueueOptions{"a": {Aging: 1 << 62}}},
		`Aging`:              {Aging: -1},
	} {
		_, err := simplequeue.New(pool, o)
		var invalid *simplequeue.InvalidOptionError
		if !errors.As(err, &invalid) || invalid.Option != want {
			t.Errorf("%s: %v", want, err)
		}
	}
}
