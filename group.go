package simplequeue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// grouper inserts the plain jobs of concurrent calls together: whatever has
// gathered while the transactions before were under way goes into the next one.
// Nothing waits for company, and nothing runs while no call waits. A call that
// finds nobody else at work is its own flusher.
//
// A call is pending until a flusher that holds a connection takes it into a
// group. Until then it can leave, and nothing has been inserted.
type grouper struct {
	queue *SimpleQueue
	limit time.Duration // how long a group waits for the database

	mu       sync.Mutex
	pending  []*groupCall    // in the order of arrival
	wanted   context.Context // ends when nothing is pending any more
	unwanted context.CancelFunc
	flushers int                   // goroutines, or a call that is alone
	left     map[uuid.UUID]*flight // jobs under way whose callers have left
}

// groupCall is the jobs of one call, which go in together or not at all.
type groupCall struct {
	batch  *batch
	bytes  int
	flight *flight    // once it is taken
	done   chan error // holds one; whoever ends the call sends it
}

// flight is what one flusher has taken.
type flight struct {
	calls   []*groupCall
	waiting int // calls that have not left
	left    []uuid.UUID
	stop    context.CancelFunc
	over    chan struct{} // closed when all is known that will be
}

const (
	// maxFlushers is how many groups are under way at once. With one, a
	// connection that hangs would stop every insert.
	maxFlushers = 2
	// groupBytes bounds what is in memory of a group.
	groupBytes = 8 << 20
	groupLimit = 30 * time.Second
	// rowBytes is about what a job takes beside its payload.
	rowBytes = 256
)

var errNotSent = errors.New("the connection or the time ended before the job was sent")

func newGrouper(q *SimpleQueue) *grouper {
	return &grouper{queue: q, limit: groupLimit, left: map[uuid.UUID]*flight{}}
}

// suits reports whether a batch gains by company: others are better off without
// it if it is large, and a plain job never waits for a key.
func (g *grouper) suits(b *batch) bool {
	return b.plain && len(b.jobs) < insertCopy && b.bytes() <= groupBytes
}

// insert returns when the batch is committed or has failed, or when ctx ends,
// which costs the other calls of a group nothing.
func (g *grouper) insert(ctx context.Context, b *batch) error {
	if ctx.Err() != nil {
		return noConnection(ended(ctx))
	}
	if g.first() {
		defer g.handOver()
		return g.alone(ctx, b)
	}
	c := newGroupCall(b)
	g.join(c)
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return g.leave(ctx, c)
	}
}

// first reports whether a call is alone, and makes it a flusher then.
func (g *grouper) first() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flushers > 0 {
		return false
	}
	g.flushers++
	return true
}

// alone inserts a batch in the caller's goroutine: to hand it to another and
// back would cost a lone caller a good part of a fast round trip.
func (g *grouper) alone(ctx context.Context, b *batch) error {
	conn, err := g.queue.pool.Acquire(ctx)
	if ctx.Err() != nil && err != nil {
		return noConnection(ended(ctx))
	}
	if err != nil {
		return noConnection(err)
	}
	defer conn.Release()
	ctx, stop := g.limited(ctx)
	defer stop()
	c := &groupCall{batch: b, done: make(chan error, 1)}
	g.put(ctx, conn.Conn(), []*groupCall{c})
	return <-c.done
}

// handOver leaves what has gathered beside a call that was alone to a goroutine.
func (g *grouper) handOver() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pending) == 0 {
		g.flushers--
		return
	}
	go g.flusher()
}

func (g *grouper) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, g.limit, fmt.Errorf("no answer within %v", g.limit))
}

// newGroupCall copies what the caller could change when it has left.
func newGroupCall(b *batch) *groupCall {
	for i := range b.jobs {
		job := *b.jobs[i].job
		job.Raw = bytes.Clone(job.Raw)
		b.jobs[i].job = &job
	}
	return &groupCall{batch: b, bytes: b.bytes(), done: make(chan error, 1)}
}

func (b *batch) bytes() (n int) {
	for i := range b.jobs {
		n += rowBytes + b.jobs[i].size
		if props := b.jobs[i].props; props != nil {
			n += len(*props)
		}
	}
	return n
}

func (g *grouper) join(c *groupCall) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pending) == 0 {
		g.wanted, g.unwanted = context.WithCancel(context.Background())
	}
	g.pending = append(g.pending, c)
	if g.flushers < maxFlushers {
		g.flushers++
		go g.flusher()
	}
}

// leave is for a caller whose context has ended. A group that all have left is
// stopped.
func (g *grouper) leave(ctx context.Context, c *groupCall) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.pending, c); i >= 0 {
		g.keep(slices.Delete(g.pending, i, i+1))
		return noConnection(ended(ctx))
	}
	select {
	case err := <-c.done:
		return err
	default: // so it is in a group that is not over
	}
	f := c.flight
	for i := range c.batch.jobs {
		if id := c.batch.jobs[i].id; g.left[id] == nil {
			f.left = append(f.left, id)
			g.left[id] = f
		}
	}
	if f.waiting--; f.waiting == 0 {
		f.stop()
	}
	return fmt.Errorf("simplequeue: insert: %w", c.batch.unknown(ended(ctx)))
}

// await waits until none of the jobs is under way: an insert that a caller has
// left and repeats by its ids must see what became of it.
func (g *grouper) await(ctx context.Context, ids map[uuid.UUID]bool) error {
	for {
		f := g.leftOf(ids)
		if f == nil {
			return nil
		}
		select {
		case <-f.over: // its connection may have broken, and be waited for
		case <-ctx.Done():
			return fmt.Errorf("simplequeue: insert: an earlier insert of the same job is under way: %w", ended(ctx))
		}
	}
}

// leftOf is one of the flights that have some of the jobs.
func (g *grouper) leftOf(ids map[uuid.UUID]bool) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.left) == 0 {
		return nil
	}
	for id := range ids {
		if f := g.left[id]; f != nil {
			return f
		}
	}
	return nil
}

// flusher inserts groups until nothing is pending.
func (g *grouper) flusher() {
	for {
		wanted := g.next()
		if wanted == nil {
			return
		}
		conn, err := g.queue.pool.Acquire(wanted)
		if err == nil {
			g.flush(conn.Conn())
			conn.Release()
		} else if wanted.Err() == nil && !g.unconnected(err) {
			return
		}
	}
}

// next is the context in which to get a connection, nil when the flusher is to
// end.
func (g *grouper) next() context.Context {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pending) == 0 {
		g.flushers--
		return nil
	}
	return g.wanted
}

// unconnected ends a flusher that gets no connection if another is there, which
// may have one, and all calls otherwise. It reports whether the flusher goes on.
func (g *grouper) unconnected(err error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flushers > 1 {
		g.flushers--
		return false
	}
	for _, c := range g.pending {
		c.done <- noConnection(err)
	}
	g.keep(nil)
	return true
}

// keep sets what is pending. g.mu is held.
func (g *grouper) keep(calls []*groupCall) {
	g.pending = calls
	if len(calls) == 0 && g.unwanted != nil {
		g.unwanted()
	}
}

func (g *grouper) flush(conn *pgx.Conn) {
	ctx, stop := g.limited(context.Background())
	defer stop()
	// Callers that the group before has just answered come back first. Where
	// there are none this costs nothing.
	runtime.Gosched()
	f := g.take(stop)
	if f == nil {
		return
	}
	g.put(ctx, conn, f.calls)
	g.end(f)
}

// take makes a group of the calls that have waited longest.
func (g *grouper) take(stop context.CancelFunc) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pending) == 0 {
		return nil
	}
	n, jobs, size := 0, 0, 0
	for _, c := range g.pending {
		jobs += len(c.batch.jobs)
		size += c.bytes
		if jobs > insertChunk || size > groupBytes {
			break
		}
		n++
	}
	f := &flight{calls: slices.Clone(g.pending[:n]), waiting: n, stop: stop, over: make(chan struct{})}
	for _, c := range f.calls {
		c.flight = f
	}
	g.keep(slices.Delete(g.pending, 0, n))
	return f
}

// put inserts calls in one transaction, and by halves where the server refuses
// that because of one of them.
func (g *grouper) put(ctx context.Context, conn *pgx.Conn, calls []*groupCall) {
	if ctx.Err() != nil || conn.IsClosed() {
		answer(ctx, calls, errNotSent)
		return
	}
	b := merge(calls)
	err := g.queue.putPlain(ctx, conn, b)
	// 40001: one of the queues has got a limit.
	refused := store.Answered(err) && !store.SchemaMissing(err) && (!store.Transient(err) || store.Code(err) == "40001")
	if len(calls) > 1 && refused {
		g.put(ctx, conn, calls[:len(calls)/2])
		g.put(ctx, conn, calls[len(calls)/2:])
		return
	}
	if err == nil {
		g.queue.wakes.jobs(b.lanes, len(b.jobs))
	}
	answer(ctx, calls, err)
}

// undecided makes repetitions of a batch wait until the server has let go of the
// connection that was given up on the way: until then it may commit. Where the
// network is away, so that nothing is heard of the server, they wait 15 seconds
// at most.
func (g *grouper) undecided(conn *pgx.Conn, b *batch) {
	f := &flight{over: make(chan struct{})}
	g.mu.Lock()
	for i := range b.jobs {
		f.left = append(f.left, b.jobs[i].id)
		g.left[b.jobs[i].id] = f
	}
	g.mu.Unlock()
	go func() {
		<-conn.PgConn().CleanupDone()
		g.end(f)
	}()
}

// merge makes one batch of the calls' jobs, in order.
func merge(calls []*groupCall) *batch {
	if len(calls) == 1 {
		return calls[0].batch
	}
	b := &batch{plain: true}
	lanes := map[store.Lane]bool{}
	for _, c := range calls {
		b.jobs = append(b.jobs, c.batch.jobs...)
		for _, l := range c.batch.lanes {
			if !lanes[l] {
				lanes[l] = true
				b.lanes = append(b.lanes, l)
			}
		}
	}
	b.encoded = len(b.jobs)
	return b
}

// answer ends calls. A doubt about the commit is about the call's own jobs.
func answer(ctx context.Context, calls []*groupCall, err error) {
	var unknown *InsertUnknownError
	doubt := errors.As(err, &unknown)
	if doubt {
		err = unknown.Err
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	for _, c := range calls {
		switch {
		case doubt:
			c.done <- fmt.Errorf("simplequeue: insert: %w", c.batch.unknown(err))
		case err != nil:
			c.done <- fmt.Errorf("simplequeue: insert: %w", err)
		default:
			c.done <- nil
		}
	}
}

func (g *grouper) end(f *flight) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range f.left {
		if g.left[id] == f {
			delete(g.left, id)
		}
	}
	close(f.over)
}

// ended tells how a context has ended, its cause included.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), cause)
	}
	return ctx.Err()
}

func noConnection(err error) error {
	return fmt.Errorf("simplequeue: no connection to insert on: %w", err)
}
