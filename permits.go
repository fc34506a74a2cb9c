package simplequeue

import (
	"context"
	"sync"
)

// permits is a counting semaphore whose limit can change while permits are out:
// nothing is granted as long as the new limit is reached by old permits.
type permits struct {
	mu      sync.Mutex
	limit   int
	used    int
	waiters []chan struct{} // first come, first served; closed when granted
}

func newPermits(limit int) *permits { return &permits{limit: limit} }

// tryAcquire takes a permit if one is free and nobody waits for it.
func (p *permits) tryAcquire() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used >= p.limit || len(p.waiters) > 0 {
		return false
	}
	p.used++
	return true
}

// acquire waits for a permit until ctx ends.
func (p *permits) acquire(ctx context.Context) error {
	p.mu.Lock()
	granted := make(chan struct{})
	p.waiters = append(p.waiters, granted)
	p.grant()
	p.mu.Unlock()

	select {
	case <-granted:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range p.waiters {
		if w == granted {
			p.waiters = append(p.waiters[:i], p.waiters[i+1:]...)
			return ctx.Err()
		}
	}
	return nil // granted at the last moment
}

func (p *permits) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	p.grant()
}

func (p *permits) resize(limit int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
	p.grant()
}

func (p *permits) grant() {
	for p.used < p.limit && len(p.waiters) > 0 {
		p.used++
		close(p.waiters[0])
		p.waiters = p.waiters[1:]
	}
}

func (p *permits) state() (limit, used int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit, p.used
}

// window bounds how many jobs of one queue may wait, claimed, for payload memory
// and for the handler's own permit. Each grant lets one more wait, each
// fruitless wait halves it: a queue whose handler grants nothing keeps one job
// knocking, and no global permits that other queues could use. Where neither is
// to be waited for the window is as good as open.
type window struct {
	mu      sync.Mutex
	size    int
	waiting int
}

const (
	firstWindow = 8 // where jobs have to wait
	maxWindow   = 1 << 20
)

func newWindow(size int) *window { return &window{size: size} }

// room is how many more jobs may come to wait.
func (w *window) room() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(0, w.size-w.waiting)
}

func (w *window) enter(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting += n
}

// stay is asked by a job that finds no payload memory free: the window closes to
// where jobs have to wait. A job that is then one too many has left.
func (w *window) stay() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size = min(w.size, firstWindow)
	if w.waiting <= w.size {
		return true
	}
	w.waiting--
	return false
}

// leave is called once for each job that entered. It reports whether this has
// made room where there was none.
func (w *window) leave(granted bool) (room bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	full := w.waiting >= w.size
	w.waiting--
	if granted {
		w.size = min(w.size+1, maxWindow)
	} else {
		w.size = max(1, w.size/2)
	}
	return full && w.waiting < w.size
}
