package simplequeue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// CancelAndWait is [SimpleQueue.Cancel], and then waits until the job has ended,
// wherever it runs, or ctx ends. It returns the state in which the job ended:
// [StateCancelled], or [StateCompleted] where its handler finished first. With
// ctx's error comes the state the job was last seen in; the request to cancel
// stands.
//
// Any number of calls in a process wait with one statement a look, which comes
// every few milliseconds at first and four times a second later; none holds a
// connection. Errors are those of Cancel; [ErrNotFound] also where the job has
// ended and its retention keeps nothing of it.
func (q *SimpleQueue) CancelAndWait(ctx context.Context, id uuid.UUID, reason string) (State, error) {
	state, err := q.Cancel(ctx, id, reason)
	if err != nil || state.Terminal() {
		return state, err
	}
	ended, err := q.ends.await(ctx, id)
	switch {
	case err != nil:
		return state, err
	case ended == "":
		return "", fmt.Errorf("%w: %v has ended, and nothing of it is kept", ErrNotFound, id)
	}
	return ended, nil
}

// endWatch waits for jobs to end: one goroutine looks for all callers, while
// there are any.
type endWatch struct {
	look func(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]State, error)

	mu      sync.Mutex
	waiting map[uuid.UUID][]chan State // each of size 1
	fresh   bool                       // somebody has come since the last look
	looking bool
}

const (
	endFirst = 5 * time.Millisecond
	endMost  = 250 * time.Millisecond
	endLimit = 10 * time.Second
)

// await returns the state in which the job ended, "" if it is nowhere.
func (w *endWatch) await(ctx context.Context, id uuid.UUID) (State, error) {
	ch := make(chan State, 1)
	w.mu.Lock()
	if w.waiting == nil {
		w.waiting = map[uuid.UUID][]chan State{}
	}
	w.waiting[id] = append(w.waiting[id], ch)
	w.fresh = true
	if !w.looking {
		w.looking = true
		go w.run()
	}
	w.mu.Unlock()
	select {
	case s := <-ch:
		return s, nil
	case <-ctx.Done():
		w.leave(id, ch)
		return "", ctx.Err()
	}
}

func (w *endWatch) leave(id uuid.UUID, ch chan State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.waiting[id]
	for i, c := range list {
		if c == ch {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if w.waiting[id] = list; len(list) == 0 {
		delete(w.waiting, id)
	}
}

// run looks until nobody waits. The pause doubles, and is short again for
// whoever comes.
func (w *endWatch) run() {
	pause := endFirst
	for {
		t := time.NewTimer(jittered(pause))
		<-t.C
		w.mu.Lock()
		if len(w.waiting) == 0 {
			w.looking = false
			w.mu.Unlock()
			return
		}
		if pause = min(2*pause, endMost); w.fresh {
			pause, w.fresh = endFirst, false
		}
		ids := make([]uuid.UUID, 0, len(w.waiting))
		for id := range w.waiting {
			ids = append(ids, id)
		}
		w.mu.Unlock()
		ctx, stop := context.WithTimeout(context.Background(), endLimit)
		live, err := w.look(ctx, ids)
		stop()
		if err != nil {
			continue // the callers' contexts bound how long this may go on
		}
		w.tell(ids, live)
	}
}

// tell ends the wait for the jobs that have ended.
func (w *endWatch) tell(ids []uuid.UUID, states map[uuid.UUID]State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if s := states[id]; s == "" || s.Terminal() {
			for _, ch := range w.waiting[id] {
				ch <- s
			}
			delete(w.waiting, id)
		}
	}
}

// states are those of the jobs that are anywhere, as one statement sees them.
func (q *SimpleQueue) states(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]State, error) {
	found, err := q.db.States(ctx, endLimit, rawIDs(ids))
	if err != nil {
		return nil, fmt.Errorf("simplequeue: look for the states of jobs: %w", err)
	}
	states := make(map[uuid.UUID]State, len(found))
	for id, s := range found {
		states[id] = State(s)
	}
	return states, nil
}
