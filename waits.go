package simplequeue

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// waits is how calls wait for jobs: one goroutine looks for all of them, while
// there are any, at many jobs at once. A job that tells is looked at when it has
// told, as long as one more goroutine listens; any other one now and then.
type waits struct {
	look   func(ctx context.Context, ids [][16]byte) (map[[16]byte]*store.Info, error)
	listen func(ctx context.Context) // until ctx ends; nil where nothing is to be heard
	woken  chan struct{}             // size 1: something is due earlier than it was

	mu        sync.Mutex
	jobs      map[uuid.UUID]*waited
	due       dueHeap   // those that are not being looked at
	running   bool      // the goroutine is there
	telling   bool      // somebody has waited for a job that tells
	listening bool      // what is told is heard
	idle      time.Time // since when nobody waits
}

// waited is a job that calls wait for.
type waited struct {
	id      uuid.UUID
	callers []*caller
	tells   bool
	pause   time.Duration // before the next look
	due     time.Time     // of the next look
	place   int           // in the heap, -1 while it is being looked at
	again   bool          // it has told meanwhile
	missed  bool          // the last look has not found it
}

type caller struct {
	waitUntil
	looked bool       // a look has begun since the call
	reply  chan reply // size 1, sent to once
}

type reply struct {
	row *store.Info
	err error
}

const (
	lookFirst  = 5 * time.Millisecond // between looks at a job that does not tell
	lookMost   = 250 * time.Millisecond
	lookSafely = time.Second // at one that tells, in case that was lost; then twice as long each time
	lookRarely = 5 * time.Second
	lookSoon   = 25 * time.Millisecond // at one that was just inserted, and may have told before it was waited for
	lookEach   = 50 * time.Microsecond // however many there are, looks take a part of the time
	lookAgain  = 50 * time.Millisecond // for one that was nowhere
	lookBatch  = 1000
	lookLimit  = 10 * time.Second
	waitLinger = 2 * time.Second // for the next call, before the connection is closed
)

// await waits for a job.
func (w *waits) await(ctx context.Context, id uuid.UUID, what waitUntil) (JobInfo, error) {
	c := &caller{waitUntil: what, reply: make(chan reply, 1)}
	w.enter(id, c)
	select {
	case r := <-c.reply:
		if r.err != nil {
			return JobInfo{Job: Job{ID: id}}, fmt.Errorf("simplequeue: wait for job %v: %w", id, r.err)
		}
		return infoOfWait(id, r.row)
	case <-ctx.Done():
		w.leave(id, c)
		return JobInfo{Job: Job{ID: id}}, fmt.Errorf("simplequeue: wait for job %v: %w", id, ended(ctx))
	}
}

func (w *waits) enter(id uuid.UUID, c *caller) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.jobs[id]
	if j == nil {
		j = &waited{id: id, tells: c.tells, due: time.Now()}
		if c.tells && w.listening {
			j.due = j.due.Add(lookSoon)
		}
		w.jobs[id] = j
		heap.Push(&w.due, j)
	} else {
		w.now(j)
	}
	j.callers = append(j.callers, c)
	j.pause = lookFirst
	w.telling = w.telling || c.tells
	if !w.running {
		w.running = true
		go w.run()
	}
	w.wake()
}

func (w *waits) leave(id uuid.UUID, c *caller) {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.jobs[id]
	if j == nil {
		return
	}
	for i, other := range j.callers {
		if other == c {
			j.callers = append(j.callers[:i:i], j.callers[i+1:]...)
			break
		}
	}
	if len(j.callers) == 0 {
		w.forget(j)
	}
}

// forget ends the wait for a job. w.mu is held.
func (w *waits) forget(j *waited) {
	if j.place >= 0 {
		heap.Remove(&w.due, j.place)
	}
	delete(w.jobs, j.id)
	if len(w.jobs) == 0 {
		w.wake()
	}
}

// now lets a job be looked at at once. w.mu is held.
func (w *waits) now(j *waited) {
	if j.place < 0 {
		j.again = true
		return
	}
	j.due = time.Now()
	heap.Fix(&w.due, j.place)
}

func (w *waits) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// told is called with jobs that there is something to see of.
func (w *waits) told(ids []uuid.UUID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if j := w.jobs[id]; j != nil {
			w.now(j)
			w.wake()
		}
	}
}

// received acts on a notification. The first one of a connection says that
// anything may have been missed before: all jobs are looked at, together.
func (w *waits) received(n note) {
	w.told(n.ended)
	if !n.any {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listening = true
	for _, j := range w.jobs {
		w.now(j)
	}
	w.wake()
}

// away is told that nothing is heard any more. The next connection will soon say
// that it is there; if it does not, the jobs are looked at without it.
func (w *waits) away() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listening = false
	for _, j := range w.jobs {
		if due := time.Now().Add(jittered(lookSafely)); j.place >= 0 && due.Before(j.due) {
			j.pause, j.due = lookMost, due
			heap.Fix(&w.due, j.place)
		}
	}
	w.wake()
}

// run serves as long as somebody waits.
func (w *waits) run() {
	for w.serve() {
	}
}

// serve looks at what is due until nobody has waited for a while. It reports
// whether somebody does again.
func (w *waits) serve() bool {
	ctx, stop := context.WithCancel(context.Background())
	var listener sync.WaitGroup
	listens := false
	for {
		next := w.next(listens)
		if next.over {
			break
		}
		if next.listen && !listens {
			listens = true
			listener.Go(func() { w.listen(ctx) })
		}
		if len(next.ids) == 0 {
			w.rest(next.pause)
			continue
		}
		found, err := w.look(ctx, next.ids)
		w.tell(next.ids, found, err)
	}
	stop()
	listener.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listening = false
	w.running = len(w.jobs) > 0
	return w.running
}

// task is what is to be done next.
type task struct {
	ids    [][16]byte    // to look at
	pause  time.Duration // or to rest
	listen bool
	over   bool
}

// next takes the jobs that are due, and with them those that soon would be: they
// share the look. Without any it lingers for the next call, if
// there is a connection to close.
func (w *waits) next(listens bool) (t task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if len(w.jobs) == 0 {
		if w.idle.IsZero() {
			w.idle = now
		}
		t.pause = w.idle.Add(waitLinger).Sub(now)
		if t.over = !listens || t.pause <= 0; t.over {
			w.telling = false
		}
		return t
	}
	w.idle = time.Time{}
	t.listen = w.telling && w.listen != nil
	for len(w.due) > 0 && len(t.ids) < lookBatch {
		j := w.due[0]
		ahead := j.due.Sub(now)
		if ahead > 0 && (len(t.ids) == 0 || ahead > j.pause/2) {
			t.pause = ahead
			break
		}
		heap.Pop(&w.due)
		j.place, j.again = -1, false
		for _, c := range j.callers {
			c.looked = true
		}
		t.ids = append(t.ids, j.id)
	}
	return t
}

// rest waits, or until something is due earlier.
func (w *waits) rest(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.woken:
	}
}

// tell answers the calls whose wait is over, and puts the others off.
func (w *waits) tell(ids [][16]byte, found map[[16]byte]*store.Info, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		j := w.jobs[id]
		if j == nil || j.place >= 0 {
			continue // nobody waits any more, or somebody does anew
		}
		switch row := found[id]; {
		case err != nil && store.Answered(err) && !store.Transient(err):
			w.answer(j, reply{err: err}, func(*caller) bool { return true })
		case err != nil:
			j.pause = lookMost // the callers' contexts bound how long this may go on
		case row == nil && !j.missed:
			// A session may be blind to a partition that was just made. Once more.
			j.missed, j.pause = true, lookAgain
		case row == nil:
			w.answer(j, reply{}, func(*caller) bool { return true })
		default:
			j.missed = false
			w.answer(j, reply{row: row}, func(c *caller) bool { return c.over(row) })
			w.paced(j, row)
		}
		if len(j.callers) == 0 {
			w.forget(j)
			continue
		}
		j.due = time.Now().Add(jittered(j.pause))
		if j.again {
			j.due = time.Now()
		}
		heap.Push(&w.due, j)
	}
}

// answer ends the wait of those for whom it is over. Who came while the look was
// under way, which may have missed what the caller has just done, waits for the
// next.
func (w *waits) answer(j *waited, r reply, over func(*caller) bool) {
	var still []*caller
	for _, c := range j.callers {
		if c.looked && over(c) {
			c.reply <- r
		} else {
			still = append(still, c)
		}
	}
	j.callers = still
}

// paced says when to look at a job again that goes on.
func (w *waits) paced(j *waited, row *store.Info) {
	var p Job
	p.fill(nil, row.Props)
	j.tells = p.awaited
	w.telling = w.telling || j.tells
	if j.tells && w.listening {
		j.pause = min(max(2*j.pause, lookSafely), lookRarely)
		return
	}
	j.pause = max(min(2*j.pause, lookMost), time.Duration(len(w.jobs))*lookEach)
}

// dueHeap is a heap of jobs by the time at which they are due.
type dueHeap []*waited

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *dueHeap) Push(x any) {
	j := x.(*waited)
	j.place = len(*h)
	*h = append(*h, j)
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	j := (*h)[last]
	(*h)[last], *h = nil, (*h)[:last]
	j.place = -1
	return j
}
