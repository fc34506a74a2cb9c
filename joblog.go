package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// Logger returns the logger of the job whose handler runs with ctx. Its lines go
// to Options.LogSink, in the background: logging never waits, and a line for
// which there is no room is dropped and counted, in the job's log as in [Stats].
// Without a sink they go to Options.Logger, with the job's id, queue, kind and
// attempt. Outside a handler Logger returns slog.Default().
func Logger(ctx context.Context) *slog.Logger {
	r, ok := ctx.Value(contextKey{}).(*running)
	switch {
	case !ok:
		return slog.Default()
	case r.job == nil: // a batch's
		return r.queue.opts.Logger
	case r.queue.lines == nil:
		return r.queue.opts.Logger.With("job_id", r.job.ID, "queue", r.job.Queue, "kind", r.job.Kind, "attempt", r.job.Attempt)
	}
	return slog.New(&lineHandler{buffer: r.queue.lines, of: r.attemptLines()})
}

// LogSink stores what handlers log. It is called by one goroutine, which is not
// a handler's.
type LogSink interface {
	// WriteLog stores lines of any jobs; those of one attempt come in their
	// order. After an error it is called with the same lines again, after a
	// pause that grows, until it works or Run ends; meanwhile newer lines are
	// kept as long as there is room, and dropped then. ctx ends after some
	// seconds.
	WriteLog(ctx context.Context, lines []LogLine) error
}

// LogLine is a line that a handler has logged.
type LogLine struct {
	JobID   uuid.UUID
	Queue   string // empty in what JobLog returns
	Kind    string // empty in what JobLog returns
	Attempt int
	Time    time.Time // of the call that logged it, by the worker's clock
	Level   slog.Level
	Message string
	Attrs   json.RawMessage // an object, nil if there are none

	claim, seq int64 // of the line in its claim
	keep       int64 // seconds, or janitor.Forever
}

// LogTable returns the sink that stores lines in the database, in the table
// job_log of the queue's schema. [SimpleQueue.JobLog] reads them. Lines are kept
// as long as the job's row is, in the archive or the dead letter queue, whichever
// is longer, counted from the line, and at least a day.
func LogTable() LogSink { return logTable{} }

// logTable is bound to a queue by New.
type logTable struct {
	db         *store.DB
	partitions *janitor.Janitor
}

func (s logTable) WriteLog(ctx context.Context, lines []LogLine) error {
	columns := &store.Lines{}
	for i := range lines {
		columns.JobIDs = append(columns.JobIDs, lines[i].JobID.String())
		columns.ClaimIDs = append(columns.ClaimIDs, lines[i].claim)
		columns.Seqs = append(columns.Seqs, lines[i].seq)
		columns.Attempts = append(columns.Attempts, int32(lines[i].Attempt))
		columns.AtUS = append(columns.AtUS, lines[i].Time.UnixMicro())
		columns.Levels = append(columns.Levels, int32(lines[i].Level))
		columns.Messages = append(columns.Messages, lines[i].Message)
		columns.Attrs = append(columns.Attrs, nonEmpty(string(lines[i].Attrs)))
		columns.Keep = append(columns.Keep, lines[i].keep)
	}
	err := s.db.InsertLines(ctx, workLimit, columns)
	if store.NoPartition(err) {
		keep := slices.Compact(slices.Sorted(slices.Values(columns.Keep)))
		if err = s.partitions.MakeLogPartitions(ctx, keep); err == nil {
			err = s.db.InsertLines(ctx, workLimit, columns)
		}
	}
	return err
}

// keepLines is for how long the lines of a job are kept, in seconds.
func keepLines(r Retention) int64 {
	if r.Archive == KeepForever || r.DeadLetter == KeepForever {
		return janitor.Forever
	}
	return keepSeconds(max(r.Archive, r.DeadLetter, 24*time.Hour))
}

// JobLog reads what the handlers of a job have logged to a [LogTable], attempt by
// attempt in the order in which it was logged. It holds a connection until the
// loop ends. A job without lines, or that does not exist, has none.
func (q *SimpleQueue) JobLog(ctx context.Context, id uuid.UUID) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		err := q.db.JobLines(ctx, id, func(l store.Line) bool {
			return yield(LogLine{
				JobID: id, Attempt: int(l.Attempt), Time: l.At, Level: slog.Level(l.Level), Message: l.Message, Attrs: l.Attrs,
			}, nil)
		})
		if err != nil {
			yield(LogLine{}, fmt.Errorf("simplequeue: read the log of job %v: %w", id, err))
		}
	}
}
