package simplequeue

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// wakeups tells workers that there is work: those of this process directly,
// others by a notification. PostgreSQL lets one transaction at a time commit a
// notification, so they are sent outside the inserting transactions, by one
// goroutine, for all lanes that have gathered.
type wakeups struct {
	queue   *SimpleQueue
	channel string

	mu      sync.Mutex
	lanes   map[store.Lane]bool
	cancel  bool        // a running job is to be cancelled
	pause   bool        // a queue has been paused or resumed
	gate    bool        // a job has come to a gate
	done    []uuid.UUID // jobs of which whoever waits for them is to be told
	sending bool
}

const (
	wakeGap   = 5 * time.Millisecond // between two notifications of a process
	wakeLimit = 5 * time.Second
)

// jobs wakes workers for lanes into which n jobs have been put. Where this
// process has permits to run them itself, it does not bother the others.
func (w *wakeups) jobs(lanes []store.Lane, n int) {
	if len(lanes) == 0 {
		return
	}
	var remote []store.Lane
	if e := w.queue.engine.Load(); e != nil && !e.runner.refusing.Load() {
		e.poller.hint(lanes)
		free := e.free()
		for _, l := range lanes {
			if r := w.queue.routes.find(l.Queue); r == nil || min(r.budget(), free) < n {
				remote = append(remote, l)
			}
		}
	} else {
		remote = lanes
	}
	if w.queue.opts.PollOnly || len(remote) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lanes == nil {
		w.lanes = map[store.Lane]bool{}
	}
	for _, l := range remote {
		w.lanes[l] = true
	}
	w.send()
}

// cancels tells workers that running jobs are to be cancelled.
func (w *wakeups) cancels() {
	if e := w.queue.engine.Load(); e != nil {
		e.lookForCancels()
	}
	if w.queue.opts.PollOnly {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel = true
	w.send()
}

// pauses tells workers that a queue has been paused or resumed.
func (w *wakeups) pauses() {
	if e := w.queue.engine.Load(); e != nil {
		e.poller.lookForPauses()
	}
	if w.queue.opts.PollOnly {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pause = true
	w.send()
}

// gates tells a worker that a gate may be open, this process's own if it has one.
func (w *wakeups) gates() {
	if e := w.queue.engine.Load(); e != nil && !e.runner.refusing.Load() {
		e.admitter.hint()
		return
	}
	if w.queue.opts.PollOnly {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate = true
	w.send()
}

// ended tells whoever waits for the jobs, here and in other processes, that there
// is something to see.
func (w *wakeups) ended(ids []uuid.UUID) {
	if len(ids) == 0 {
		return
	}
	w.queue.waits.told(ids)
	if w.queue.opts.PollOnly {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, ids...)
	w.send()
}

// send starts the sender unless it is at work. w.mu is held.
func (w *wakeups) send() {
	if w.sending {
		return
	}
	w.sending = true
	go w.sender()
}

// sender sends what has gathered until nothing is left. A notification that
// cannot be sent is dropped: the poll interval finds the jobs, and whoever waits
// looks by itself.
func (w *wakeups) sender() {
	for {
		message, done, ok := w.take()
		if !ok {
			return
		}
		if message != "" {
			w.notify(w.channel, message)
		}
		for some := range slices.Chunk(done, maxEnded) {
			w.notify(endedChannel(w.channel), encodeEnded(some))
		}
		t := time.NewTimer(wakeGap)
		<-t.C
	}
}

func (w *wakeups) notify(channel, message string) {
	ctx, stop := context.WithTimeout(context.Background(), wakeLimit)
	defer stop()
	db := w.queue.db
	if e := w.queue.engine.Load(); e != nil && !e.runner.refusing.Load() {
		db = e.db
	}
	if err := db.Notify(ctx, wakeLimit, channel, message); err != nil {
		w.queue.log.Debug("wake-up not sent", "err", err)
	}
}

func (w *wakeups) take() (message string, done []uuid.UUID, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lanes) == 0 && !w.cancel && !w.pause && !w.gate && len(w.done) == 0 {
		w.sending = false
		return "", nil, false
	}
	done, w.done = w.done, nil
	var parts []string
	if len(w.lanes) > 0 {
		parts = append(parts, encodeWake(slices.Collect(maps.Keys(w.lanes))))
	}
	if w.cancel {
		parts = append(parts, noteCancel)
	}
	if w.pause {
		parts = append(parts, notePause)
	}
	if w.gate {
		parts = append(parts, noteGate)
	}
	w.lanes, w.cancel, w.pause, w.gate = nil, false, false, false
	return strings.Join(parts, "\n"), done, true
}
