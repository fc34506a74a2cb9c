package simplequeue_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// With aging a job of low priority runs although jobs of high priority never
// end; in a queue without it does not, while hundreds of those run.
func TestPriorityAging(t *testing.T) {
	t.Parallel()
	var urgent [2]atomic.Int64
	queues := []string{"aging", "strict"}
	var q *simplequeue.SimpleQueue
	process := func(ctx context.Context, job *simplequeue.Job) error {
		if job.Priority > 0 {
			return nil
		}
		i := 0
		if job.Queue == "strict" {
			i = 1
		}
		urgent[i].Add(1)
		_, err := q.Insert(ctx, simplequeue.NewJob{Queue: job.Queue}) // before this one ends: the lane is never empty
		return err
	}
	q = newQueue(t, pgtest.New(t), simplequeue.Options{
		Aging: 20 * time.Millisecond, QueuePermits: 1,
		Queues:   map[string]simplequeue.QueueOptions{"strict": {Aging: -1}},
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("aging", process), simplequeue.HandlerFunc("strict", process)},
	})
	low := map[string]uuid.UUID{}
	for _, queue := range queues {
		for range 4 {
			insert(t, q, simplequeue.NewJob{Queue: queue})
		}
		low[queue] = insert(t, q, simplequeue.NewJob{Queue: queue, Priority: 9})
	}
	start(t, q)
	awaitState(t, q, low["aging"], simplequeue.StateCompleted)
	before := urgent[1].Load()
	eventually(t, "jobs of the strict queue run on", func() bool { return urgent[1].Load() > before+100 })
	if s := state(t, q, low["strict"]); s != simplequeue.StatePending {
		t.Errorf("without aging the job of low priority is %s", s)
	}
	if q.Stats().Risen == 0 {
		t.Error("Stats do not tell that a job has risen")
	}
}

// The job of priority 9 is older than the other by more than nine times Aging,
// and so runs first.
func ExampleOptions_aging() {
	ctx := context.Background()
	var t exampleTB
	defer t.cleanup()
	done := make(chan bool, 2)
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{
		Aging: time.Millisecond, GlobalPermits: 1,
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("reports", func(_ context.Context, job *simplequeue.Job) error {
			fmt.Println("priority", job.Priority)
			done <- true
			return nil
		})},
	})
	for _, priority := range []int{9, 0} {
		if _, err := q.Insert(ctx, simplequeue.NewJob{Queue: "reports", Priority: priority}); err != nil {
			fmt.Println(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop := start(&t, q)
	<-done
	<-done
	_ = stop()
	// Output:
	// priority 9
	// priority 0
}
