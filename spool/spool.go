package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Options configures a Spool. The zero value works.
type Options struct {
	// MaxJobs is how many jobs the file holds at most, those that are set aside
	// included. Default 100,000.
	MaxJobs int
	// MaxBytes is how large the records in the file are at most, together. The
	// file itself may be twice as large, and keeps its size. Default 256 MiB.
	MaxBytes int64
	// Patience is how long an insert waits for the database before its jobs go
	// to the file, and for a replay that is about to be done with it. An earlier
	// deadline of its context counts instead. Default 5 s.
	Patience time.Duration
	// Logger is where the spool logs. Default slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.MaxJobs == 0 {
		o.MaxJobs = 100_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 256 << 20
	}
	if o.Patience == 0 {
		o.Patience = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case o.MaxJobs < 0:
		return o, &InvalidOptionError{"MaxJobs", o.MaxJobs, "must be positive, or 0 for the default of 100,000"}
	case o.MaxBytes < 0:
		return o, &InvalidOptionError{"MaxBytes", o.MaxBytes, "must be positive, or 0 for the default of 256 MiB"}
	case o.Patience < 0:
		return o, &InvalidOptionError{"Patience", o.Patience, "must be positive, or 0 for the default of 5s"}
	}
	return o, nil
}

// Spool is a file of jobs that wait for the database. It is safe for concurrent
// use.
type Spool struct {
	path   string
	opts   Options
	file   *file
	target *simplequeue.SpoolTarget // nil until Attach
	added  chan struct{}            // size 1: something waits in the file

	running           atomic.Bool
	said              atomic.Bool // that the database takes no inserts
	spooled, replayed atomic.Int64

	mu  sync.Mutex
	err error // of the last try to replay, nil after one that worked
}

var _ simplequeue.Spool = (*Spool)(nil)

// Open opens the spool file, or makes it in a folder that exists. The file
// belongs to one process and one schema of one database.
//
// Open reads and checks all of the file. Records that are damaged are set aside.
// Errors: [ErrInUse]; [*CorruptError] for a file that is damaged as a whole,
// which [Repair] saves what it can of; [*InvalidOptionError].
func Open(path string, opts Options) (*Spool, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Spool{path: path, opts: opts, added: make(chan struct{}, 1)}
	if s.file, err = openFile(path, opts); err != nil {
		return nil, err
	}
	if len(s.file.damaged) > 0 {
		opts.Logger.Error("spool: damaged records were set aside", "path", path, "records", s.file.damaged)
	}
	return s, nil
}

// String returns the path of the file.
func (s *Spool) String() string { return s.path }

// Close closes the file, once no insert and no Run is at work. Whatever waits in
// it waits for the next Open.
func (s *Spool) Close() error { return s.file.close() }

// Attach is called by [simplequeue.New], once for a Spool.
func (s *Spool) Attach(target *simplequeue.SpoolTarget) error {
	if s.target != nil {
		return errors.New("a spool serves one SimpleQueue: open another file for this one")
	}
	if err := s.file.belongsTo(target.Schema()); err != nil {
		return err
	}
	s.target = target
	return nil
}

// Insert is called by the SimpleQueue. It inserts the jobs, or writes them to
// the file if the database cannot take them now, or others wait there already.
//
// Beside the errors of InsertMany it returns [ErrFull], which wraps what kept
// the database from taking the jobs ([simplequeue.ErrInsertUnknown] perhaps), and
// [ErrHold], which does too.
func (s *Spool) Insert(ctx context.Context, jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, fmt.Errorf("spool: insert: %w", ctx.Err())
	}
	if err := s.letReplayEnd(ctx); err != nil {
		return nil, err
	}
	var ids []uuid.UUID
	var why error
	if s.file.empty() {
		try, stop := context.WithTimeout(ctx, s.opts.Patience)
		results, err := s.target.Insert(try, jobs)
		stop()
		if err == nil || !away(ctx, err) {
			return results, err
		}
		var unknown *simplequeue.InsertUnknownError
		if why = err; errors.As(err, &unknown) {
			ids = unknown.IDs
		}
	}
	if slices.ContainsFunc(jobs, func(j simplequeue.NewJob) bool { return j.Hold > 0 }) {
		if why == nil {
			why = errors.New("others wait in the file")
		}
		return nil, fmt.Errorf("%w: %w", ErrHold, why)
	}
	call, err := s.target.Take(ctx, jobs, ids)
	if err != nil {
		return nil, err
	}
	body, err := call.MarshalBinary()
	if err != nil {
		return nil, err
	}
	var full *FullError
	if err := s.file.add(body, len(jobs)); errors.As(err, &full) {
		full.Err = why
		return nil, full
	} else if err != nil {
		return nil, errors.Join(err, why)
	}
	if s.spooled.Add(int64(len(jobs))); why != nil && !s.said.Swap(true) {
		s.opts.Logger.WarnContext(ctx, "spool: the database took no insert, jobs go to the file", "path", s.path, "err", why)
	}
	select {
	case s.added <- struct{}{}:
	default:
	}
	results := make([]simplequeue.Inserted, len(jobs))
	for i := range call.Jobs {
		results[i] = simplequeue.Inserted{ID: call.Jobs[i].ID, Spooled: true}
	}
	return results, nil
}

// letReplayEnd waits while a replay that works has little left to do: under a
// steady stream of inserts that go behind it, the file would never be empty. A
// wait in vain is the last one until the replay has inserted something again.
func (s *Spool) letReplayEnd(ctx context.Context) error {
	turned := s.file.soonEmpty()
	if turned == nil {
		return nil
	}
	t := time.NewTimer(s.opts.Patience)
	defer t.Stop()
	select {
	case <-turned:
	case <-t.C:
		s.file.replays(false)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("spool: insert: %w", ctx.Err())
		}
	}
	return nil
}
