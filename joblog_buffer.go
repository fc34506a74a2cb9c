package simplequeue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

const (
	maxLines     = 10_000  // waiting to be written
	maxLineBytes = 8 << 20 // of them
	lineBatch    = 1000
	lineEvery    = time.Second
)

// lineBuffer holds the lines of handlers until its goroutine has written them.
// Handlers never wait for it.
type lineBuffer struct {
	sink  LogSink
	log   *slog.Logger
	level slog.Leveler
	stats *counters

	finish chan struct{} // closed when no more lines are expected
	wake   chan struct{} // size 1

	mu    sync.Mutex
	lines []LogLine
	bytes int
	lossy []*attemptLines // have dropped lines that they have not told of; at most maxLines
}

// attemptLines is what an attempt has logged. It belongs to the buffer's mutex.
type attemptLines struct {
	job     LogLine // without a message
	seq     int64
	dropped int
	lossy   bool // in the buffer's list
}

func newLineBuffer(q *SimpleQueue) (*lineBuffer, error) {
	b := &lineBuffer{
		sink: q.opts.LogSink, log: q.log, level: q.opts.LogLevel, stats: &q.stats,
		finish: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	if _, ok := b.sink.(logTable); ok {
		j, err := janitor.New(q.pool, janitor.Options{Schema: q.opts.Schema, Logger: q.log})
		if err != nil {
			return nil, err
		}
		b.sink = logTable{db: q.db, partitions: j}
	}
	return b, nil
}

// attemptLines returns those of the attempt.
func (r *running) attemptLines() *attemptLines {
	if of := r.logged.Load(); of != nil {
		return of
	}
	r.logged.CompareAndSwap(nil, &attemptLines{job: LogLine{
		JobID: r.job.ID, Queue: r.job.Queue, Kind: r.job.Kind, Attempt: r.job.Attempt,
		claim: r.claim.id, keep: keepLines(r.claim.retention()),
	}})
	return r.logged.Load()
}

// add takes a line, or drops it.
func (b *lineBuffer) add(of *attemptLines, at time.Time, level slog.Level, message string, attrs []byte) {
	size := len(message) + len(attrs)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) >= maxLines || b.bytes+size > maxLineBytes {
		b.stats.logLinesDropped.Add(1)
		of.dropped++
		if !of.lossy && len(b.lossy) < maxLines {
			of.lossy = true
			b.lossy = append(b.lossy, of)
		}
		return
	}
	b.append(of, at, level, message, attrs)
	if len(b.lines) >= lineBatch {
		b.hurry()
	}
}

func (b *lineBuffer) append(of *attemptLines, at time.Time, level slog.Level, message string, attrs []byte) {
	of.seq++
	line := of.job
	line.seq, line.Time, line.Level, line.Message, line.Attrs = of.seq, at, level, message, attrs
	b.lines = append(b.lines, line)
	b.bytes += len(message) + len(attrs)
}

// hurry has the lines written now.
func (b *lineBuffer) hurry() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the oldest lines, and after the last of them how many were dropped
// of each attempt.
func (b *lineBuffer) take() []LogLine {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.lossy) > 0 && len(b.lines) <= lineBatch {
		of := b.lossy[0]
		b.append(of, time.Now(), slog.LevelWarn, fmt.Sprintf("%d lines dropped here", of.dropped), nil)
		of.dropped, of.lossy = 0, false
		b.lossy = b.lossy[1:]
	}
	n := min(len(b.lines), lineBatch)
	batch := b.lines[:n:n]
	for _, l := range batch {
		b.bytes -= len(l.Message) + len(l.Attrs)
	}
	if b.lines = b.lines[n:]; len(b.lines) == 0 {
		b.lines, b.bytes = nil, 0
	}
	return batch
}

// run writes until finish is closed and nothing is left, or ctx ends.
func (b *lineBuffer) run(ctx context.Context, health *loopHealth) {
	for finished := false; !finished; {
		t := time.NewTimer(lineEvery)
		select {
		case <-b.wake:
		case <-t.C:
		case <-b.finish:
			finished = true
		case <-ctx.Done():
			finished = true
		}
		t.Stop()
		health.alive()
		for batch := b.take(); len(batch) > 0; batch = b.take() {
			b.write(ctx, batch, health)
		}
	}
}

// write writes lines, for as long as it takes. A line that the database refuses
// is found by halving, and dropped.
func (b *lineBuffer) write(ctx context.Context, lines []LogLine, health *loopHealth) {
	retry := newRetry()
	for {
		err := b.tryWrite(ctx, lines)
		health.report(err)
		switch {
		case err == nil:
			b.stats.logLines.Add(int64(len(lines)))
			return
		case ctx.Err() != nil:
			b.stats.logLinesDropped.Add(int64(len(lines)))
			b.log.Error("lines of handlers not written: stopped first", "lines", len(lines), "err", err)
			return
		case !store.Transient(err) && len(lines) > 1:
			b.write(ctx, lines[:len(lines)/2], health)
			b.write(ctx, lines[len(lines)/2:], health)
			return
		case !store.Transient(err):
			b.stats.logLinesDropped.Add(1)
			b.log.Error("line of a handler refused by the database", "job_id", lines[0].JobID, "err", err)
			return
		}
		if retry.count == 0 {
			b.log.Warn("lines of handlers not written, trying again", "lines", len(lines), "err", err)
		}
		_ = retry.wait(ctx)
	}
}

// tryWrite gives lines to the sink, which may panic.
func (b *lineBuffer) tryWrite(ctx context.Context, lines []LogLine) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("sink panicked: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, workLimit)
	defer cancel()
	return b.sink.WriteLog(ctx, lines)
}
