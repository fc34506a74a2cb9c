package simplequeue

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// payloadMemory bounds how many bytes of payloads are in this process at once,
// of those stored apart from their jobs. A claim takes its share before its
// payload is fetched and gives it back when its outcome is taken; first come,
// first served.
type payloadMemory struct {
	bytes *semaphore.Weighted
	size  int64
	used  *atomic.Int64
}

func newPayloadMemory(size int, used *atomic.Int64) *payloadMemory {
	return &payloadMemory{bytes: semaphore.NewWeighted(int64(size)), size: int64(size), used: used}
}

// tryTake takes the claim's share, unless it has it, if that is free and nobody
// waits for memory.
func (m *payloadMemory) tryTake(c *claim) bool {
	if c.memory > 0 {
		return true
	}
	n := m.share(c)
	if !m.bytes.TryAcquire(n) {
		return false
	}
	m.taken(c, n)
	return true
}

// take waits for the claim's share until ctx ends.
func (m *payloadMemory) take(ctx context.Context, c *claim) error {
	n := m.share(c)
	if err := m.bytes.Acquire(ctx, n); err != nil {
		return err
	}
	m.taken(c, n)
	return nil
}

// share is what a claim has to take. A payload larger than all there is takes
// all there is.
func (m *payloadMemory) share(c *claim) int64 { return min(c.payloadBytes, m.size) }

func (m *payloadMemory) taken(c *claim, n int64) {
	c.memory = n
	m.used.Add(n)
}

// giveBack frees what the claim has taken, if it has, and lets go of the
// payload. Handlers are done with it.
func (m *payloadMemory) giveBack(c *claim) {
	if c.payloadBytes == 0 {
		return
	}
	c.whole.Store(nil)
	m.used.Add(-c.memory)
	m.bytes.Release(c.memory)
	c.memory = 0
}
