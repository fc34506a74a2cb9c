package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// logged are the lines of a job, once there are so many.
func logged(t testing.TB, q *simplequeue.SimpleQueue, id uuid.UUID, n int) (lines []simplequeue.LogLine) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " lines"), func() bool {
		lines = nil
		for l, err := range q.JobLog(context.Background(), id) {
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, l)
		}
		return len(lines) >= n
	})
	return lines
}

// Lines are stored with the time at which they were logged, in their order,
// attempt by attempt, with level and attributes.
func TestJobLog(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const each = 2500 // more than a batch
	opts := handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		log := simplequeue.Logger(ctx).With("attempt", job.Attempt).WithGroup("g")
		for i := range each {
			log.Info("line", "i", i)
		}
		log.Debug("not stored")
		log.Error("last", "err", errors.New("boom"), "bad\x00key", "bad\x00value\xff", "nan", math.NaN(), "channel", make(chan int),
			"took", time.Second, slog.Group("empty"), slog.Group("inner", "struct", struct{ A int }{1}), "large", strings.Repeat("x", 1000))
		if job.ReprocessCount == 0 {
			return simplequeue.RescheduleAfter(0) // its attempt number comes again
		}
		return nil
	})
	opts.LogSink = simplequeue.LogTable()
	q := newQueue(t, pool, opts)
	start(t, q)
	before := time.Now()
	id := insert(t, q, simplequeue.NewJob{Queue: "q", MaxAttempts: 1})
	awaitState(t, q, id, simplequeue.StateCompleted)
	lines := logged(t, q, id, 2*(each+1))
	if len(lines) != 2*(each+1) {
		t.Fatalf("%d lines, want %d", len(lines), 2*(each+1))
	}
	for i, l := range lines {
		var attrs struct {
			Attempt int
			G       map[string]any
		}
		if err := json.Unmarshal(l.Attrs, &attrs); err != nil {
			t.Fatalf("line %d: %v", i, err)
		}
		if l.JobID != id || l.Attempt != 1 || attrs.Attempt != 1 || l.Time.Before(before.Add(-time.Second)) || i > 0 && l.Time.Before(lines[i-1].Time) {
			t.Fatalf("line %d: %+v", i, l)
		}
		if i %= each + 1; i < each {
			if l.Level != slog.LevelInfo || l.Message != "line" || attrs.G["i"] != float64(i) {
				t.Fatalf("line %d: %+v, %v", i, l, attrs.G)
			}
			continue
		}
		if l.Level != slog.LevelError || attrs.G["err"] != "boom" || attrs.G["nan"] != "NaN" || attrs.G["bad\uFFFDkey"] != "bad\uFFFDvalue\uFFFD" ||
			fmt.Sprint(attrs.G["inner"]) != "map[struct:map[A:1]]" || attrs.G["took"] != "1s" || attrs.G["empty"] != nil {
			t.Errorf("last line: %s", l.Attrs)
		}
	}
	eventually(t, "all lines are counted", func() bool { return q.Stats().LogLines == 2*(each+1) })
	if n := q.Stats().LogLinesDropped; n != 0 {
		t.Errorf("%d lines dropped", n)
	}
}

// Lines that cannot be stored as they are cost neither their neighbours nor more
// than they must.
func TestOddLines(t *testing.T) {
	t.Parallel()
	opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
		log := simplequeue.Logger(ctx)
		log.Info("")
		log.Info("\x00" + strings.Repeat("x", 20_000))
		log.Info("large", "all", strings.Repeat("x", 15_000), "together", strings.Repeat("x", 15_000))
		log.Info("deep", "v", json.RawMessage(nested(5000)))
		log.Info("number", "v", json.RawMessage("1e1000000"))
		log.Info("panics", "v", panicker{}, "err", (*pointerError)(nil))
		log.LogAttrs(ctx, slog.Level(-4), "below")
		return nil
	})
	opts.LogSink = simplequeue.LogTable()
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	lines := logged(t, q, insert(t, q, simplequeue.NewJob{Queue: "q"}), 6)
	if len(lines) != 6 || len(lines[1].Message) > 8<<10 || !strings.Contains(string(lines[2].Attrs), "attrs_dropped") {
		t.Errorf("%d lines, %d bytes, attributes %.100s", len(lines), len(lines[1].Message), lines[2].Attrs)
	}
	for i, l := range lines[3:] {
		if l.Attrs == nil {
			t.Errorf("line %d has no attributes", i+3)
		}
	}
}

type panicker struct{}

func (panicker) MarshalJSON() ([]byte, error) { panic("marshal") }
func (panicker) LogValue() slog.Value         { panic("value") }

// A job's lines go when their day has passed, with their partition, and not row
// by row.
func TestJobLogRetention(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
		simplequeue.Logger(ctx).Info("line")
		return nil
	})
	opts.LogSink = simplequeue.LogTable()
	q := newQueue(t, pool, opts)
	start(t, q)
	day := 24 * time.Hour
	for _, c := range []struct {
		keep simplequeue.Retention
		want string
	}{
		{simplequeue.Retention{}, "30"},
		{simplequeue.Retention{Archive: 100 * day, DeadLetter: day}, "100"},
		{simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}, "1"},
		{simplequeue.Retention{Archive: simplequeue.KeepForever}, "infinity"},
	} {
		id := insert(t, q, simplequeue.NewJob{Queue: "q", Retention: c.keep})
		logged(t, q, id, 1)
		var got string
		if err := pool.QueryRow(t.Context(), `SELECT CASE WHEN expires_on = 'infinity' THEN 'infinity'
			ELSE (expires_on - (now() AT TIME ZONE 'UTC')::date)::text END FROM simplequeue.job_log WHERE job_id = $1`, id).Scan(&got); err != nil || got != c.want {
			t.Errorf("%+v: expires in %s days, %v, want %s", c.keep, got, err, c.want)
		}
	}
	if _, err := pool.Exec(t.Context(), `CREATE TABLE simplequeue.job_log_p20200101 PARTITION OF simplequeue.job_log FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
		UPDATE simplequeue.job_sweep SET swept_at = '-infinity' WHERE name = 'janitor'`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old partition is dropped", func() bool {
		return queryOne[bool](t, pool, "SELECT to_regclass('simplequeue.job_log_p20200101') IS NULL")
	})
}

// memorySink keeps lines, or fails.
type memorySink struct {
	mu    sync.Mutex
	fail  bool
	panic bool
	calls int
	lines []simplequeue.LogLine
}

func (s *memorySink) WriteLog(_ context.Context, lines []simplequeue.LogLine) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.panic {
		panic("sink")
	}
	if s.fail {
		return errors.New("sink away")
	}
	s.lines = append(s.lines, lines...)
	return nil
}

func (s *memorySink) set(fail, panics bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.panic = fail, panics
}

func (s *memorySink) state() (calls, lines int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, len(s.lines)
}

// A sink that fails holds up no handler and is not pestered; what finds no room
// meanwhile is dropped, counted, and missed by a line that says how many.
func TestLogSinkThatIsAway(t *testing.T) {
	t.Parallel()
	for name, panics := range map[string]bool{"fails": false, "panics": true} {
		sink := &memorySink{}
		sink.set(true, panics)
		const all = 15_000
		opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
			for range all {
				simplequeue.Logger(ctx).Info("line")
			}
			return nil
		})
		opts.LogSink = sink
		q := newQueue(t, pgtest.New(t), opts)
		start(t, q)
		since := time.Now()
		id := insert(t, q, simplequeue.NewJob{Queue: "q"})
		awaitState(t, q, id, simplequeue.StateCompleted)
		dropped := q.Stats().LogLinesDropped
		if dropped == 0 || dropped > all-10_000 {
			t.Errorf("%s: %d lines dropped of %d", name, dropped, all)
		}
		eventually(t, "some tries", func() bool { calls, _ := sink.state(); return calls >= 4 })
		if calls, _ := sink.state(); float64(calls) > 6+time.Since(since).Seconds()*20 {
			t.Errorf("%s: %d tries in %v", name, calls, time.Since(since))
		}
		sink.set(false, false)
		eventually(t, "all that was kept is written", func() bool {
			_, lines := sink.state()
			return lines == all-int(dropped)+1
		})
		sink.mu.Lock()
		last := sink.lines[len(sink.lines)-1]
		sink.mu.Unlock()
		if want := fmt.Sprintf("%d lines dropped here", dropped); last.Message != want || last.Level != slog.LevelWarn || last.JobID != id || last.Queue != "q" {
			t.Errorf("%s: last line %+v, want %q", name, last, want)
		}
	}
}

// What was logged before a stop is written by its end; a sink that is away does
// not hold up the stop.
func TestLogAtAStop(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{false, true} {
		sink := &memorySink{fail: away}
		begun := make(chan struct{})
		opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
			close(begun)
			<-ctx.Done()
			simplequeue.Logger(ctx).Info("stopped")
			return ctx.Err()
		})
		opts.LogSink, opts.Stop = sink, simplequeue.StopTimeouts{Drain: -1}
		q := newQueue(t, pgtest.New(t), opts)
		stop := start(t, q)
		insert(t, q, simplequeue.NewJob{Queue: "q"})
		<-begun
		since := time.Now()
		if err := stop(); err != nil || time.Since(since) > 20*time.Second {
			t.Errorf("away %t: Run: %v after %v", away, err, time.Since(since))
		}
		if _, lines := sink.state(); (lines == 1) == away {
			t.Errorf("away %t: %d lines written", away, lines)
		}
		if n := q.Stats().LogLinesDropped; (n == 1) != away {
			t.Errorf("away %t: %d lines dropped", away, n)
		}
	}
}

// The handler keeps to the rules of package slog.
func TestLoggerIsASlogHandler(t *testing.T) {
	t.Parallel()
	sink := &memorySink{}
	ran := make(chan error, 1)
	opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
		h := simplequeue.Logger(ctx).Handler()
		ran <- slogtest.TestHandler(h, func() []map[string]any {
			_ = h.Handle(ctx, slog.NewRecord(time.Now(), slog.LevelInfo, "end", 0))
			var results []map[string]any
			eventually(t, "the lines are written", func() bool {
				sink.mu.Lock()
				defer sink.mu.Unlock()
				results = nil
				for _, l := range sink.lines {
					if l.Message == "end" {
						return true
					}
					m := map[string]any{}
					_ = json.Unmarshal(l.Attrs, &m)
					m["level"], m["msg"], m["time"] = l.Level, l.Message, l.Time
					if strings.Contains(l.Message, "zero Record.Time") || len(results) == zeroTime {
						delete(m, "time") // a line of the log has a time in any case
					}
					results = append(results, m)
				}
				return false
			})
			return results
		})
		return nil
	})
	opts.LogSink = sink
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	insert(t, q, simplequeue.NewJob{Queue: "q"})
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// zeroTime is the place in slogtest of the record without a time.
const zeroTime = 3

// Without a sink, and outside a handler, the lines go where the others go.
func TestLoggerWithoutASink(t *testing.T) {
	t.Parallel()
	if simplequeue.Logger(t.Context()) != slog.Default() {
		t.Error("outside a handler: not slog.Default()")
	}
	var out strings.Builder
	var mu sync.Mutex
	opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
		mu.Lock()
		defer mu.Unlock()
		simplequeue.Logger(ctx).Info("hello")
		return nil
	})
	opts.Logger = slog.New(slog.NewTextHandler(&out, nil))
	q := newQueue(t, pgtest.New(t), opts)
	stop := start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "q", Kind: "k"})
	awaitState(t, q, id, simplequeue.StateCompleted)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"msg=hello", "job_id=" + id.String(), "queue=q", "kind=k", "attempt=1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, out.String())
		}
	}
}
