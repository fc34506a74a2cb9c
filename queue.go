package simplequeue

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/store"
)

// SimpleQueue inserts, runs and inspects the jobs of one schema. It is safe for
// concurrent use. Several may live in one process, and several schemas in one
// database.
type SimpleQueue struct {
	opts   Options
	pool   *pgxpool.Pool
	db     *store.DB // on the caller's pool
	kept   keeper    // db, which has what handlers keep
	routes *routes
	log    *slog.Logger
	stats  counters
	wakes  *wakeups
	groups *grouper
	lines  *lineBuffer // nil without a sink

	partitions madePartitions
	waits      *waits
	hand       uuid.UUID // claims of this process that no worker makes
	bounds     bounds
	inserts    InsertFunc // through the middleware; nil without any

	stopping chan struct{} // closed when Run begins to stop

	ran    atomic.Bool
	engine atomic.Pointer[engine] // while Run is going
}

// New returns a SimpleQueue on a pool. It neither connects nor starts anything:
// it can insert and inspect at once, and [SimpleQueue.Run] makes it work.
// An option that makes no sense is an [*InvalidOptionError].
func New(pool *pgxpool.Pool, opts Options) (*SimpleQueue, error) {
	if pool == nil {
		return nil, &InvalidOptionError{"pool", nil, "must not be nil"}
	}
	return newOn(pool, opts)
}

func newOn(pool *pgxpool.Pool, opts Options) (*SimpleQueue, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	q := &SimpleQueue{opts: opts, pool: pool, hand: uuid.New(), stopping: make(chan struct{}), log: opts.Logger.With("schema", opts.Schema)}
	if q.routes, err = newRoutes(&q.opts); err != nil {
		return nil, err
	}
	q.db = &store.DB{Schema: store.NewSchema(opts.Schema), Pool: pool}
	q.kept = q.db
	q.wakes = &wakeups{queue: q, channel: channelName(opts.Schema)}
	q.groups = newGrouper(q)
	if opts.LogSink != nil {
		if q.lines, err = newLineBuffer(q); err != nil {
			return nil, err
		}
	}
	q.waits = newWaits(q)
	q.inserts = chainInserts(q.opts.InsertMiddleware)
	if opts.Spool != nil {
		if err := opts.Spool.Attach(&SpoolTarget{q}); err != nil {
			return nil, &InvalidOptionError{"Spool", opts.Spool, err.Error()}
		}
	}
	return q, nil
}

// Run runs jobs until ctx is cancelled, and then stops: it claims nothing more,
// lets running jobs finish within Options.Stop.Drain, cancels the others with
// [ErrShutdown], gives back what does not return within Stop.Cancel, and writes
// all outcomes within Stop.Flush. Jobs that are given back have not used an
// attempt.
//
// Run returns nil after a clean stop, and a [*StopError] that says what was left
// over after another. It returns an error at once without Handlers, when it is
// called a second time, [ErrRunning], and when the schema is not there or too
// old, [ErrSchema]: see package migrate. A database that cannot be reached is
// waited for; that ctx ends before it was reached for the first time is an error
// too.
func (q *SimpleQueue) Run(ctx context.Context) error {
	if q.routes.empty {
		return errNoHandlers
	}
	if q.db.Within != nil {
		return errWithin
	}
	if !q.ran.CompareAndSwap(false, true) {
		return ErrRunning
	}
	e, err := newEngine(ctx, q)
	if err != nil {
		return err
	}
	q.engine.Store(e)
	defer q.engine.Store(nil)
	q.partitions.prepare(ctx, q)
	return e.run(ctx)
}

// SetQueuePermits changes how many jobs of a queue run at once in this process.
// Jobs that run keep their permits; none starts until their number is below the
// new limit. It may be called before Run, and is forgotten with the process. A
// queue without a name, or fewer than 1 permit, is an [*InvalidOptionError].
func (q *SimpleQueue) SetQueuePermits(queue string, permits int) error {
	if problem := queueNameProblem(queue); problem != "" {
		return &InvalidOptionError{"queue", queue, problem}
	}
	if permits < 1 {
		return &InvalidOptionError{"permits", permits, "must be at least 1"}
	}
	q.routes.resize(queue, permits)
	if e := q.engine.Load(); e != nil {
		e.poller.wake()
	}
	return nil
}

// contextKey finds what runs in a handler's context.
type contextKey struct{}

// running is a job in its handler.
type running struct {
	queue *SimpleQueue
	job   *Job // nil in the context of a batch, as is claim
	claim *claim
	ctx   context.Context // of the handler's call, nil before

	logged atomic.Pointer[attemptLines] // nil until it logs

	mu    sync.Mutex                 // held by what writes the job's payload or steps
	steps map[string]json.RawMessage // nil until they have been asked for
	// stepBytes is what their names and values have, as the database prints them.
	stepBytes int
}

// FromContext returns the queue that runs the handler whose context ctx is, or
// nil outside a handler. Jobs inserted with such a context know the job whose
// handler inserted them as their parent.
func FromContext(ctx context.Context) *SimpleQueue {
	if r, ok := ctx.Value(contextKey{}).(*running); ok {
		return r.queue
	}
	return nil
}

// JobFromContext returns the job whose handler runs with ctx, or nil.
func JobFromContext(ctx context.Context) *Job {
	if r, ok := ctx.Value(contextKey{}).(*running); ok {
		return r.job
	}
	return nil
}
