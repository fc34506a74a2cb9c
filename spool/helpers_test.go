package spool_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/spool"
)

func TestMain(m *testing.M) {
	if processMain() {
		return // this was a producer of some test
	}
	pgtest.Main(m)
}

// processMain runs the binary as a producer if a test started it as one.
var processMain = func() bool { return false }

var quiet = slog.New(slog.DiscardHandler)

// rig is a spool with a queue whose way to the database a test can cut.
type rig struct {
	t      testing.TB
	path   string
	direct *pgxpool.Pool // not through the proxy
	proxy  *pgtest.Proxy
	spool  *spool.Spool
	queue  *simplequeue.SimpleQueue
	stop   func()
}

// newRig returns a rig whose database can be reached.
func newRig(t testing.TB, opts spool.Options, queue simplequeue.Options) *rig {
	t.Helper()
	url := pgtest.Database(t)
	b := &rig{t: t, path: filepath.Join(t.TempDir(), "jobs.spool"), direct: pgtest.Pool(t, url, 4), proxy: pgtest.NewProxy(t, url)}
	b.open(opts, queue)
	t.Cleanup(b.close)
	return b
}

// open opens the spool, as a new process would.
func (b *rig) open(opts spool.Options, queue simplequeue.Options) {
	b.t.Helper()
	opts.Logger, queue.Logger = quiet, quiet
	var err error
	if b.spool, err = spool.Open(b.path, opts); err != nil {
		b.t.Fatalf("Open: %v", err)
	}
	queue.Spool = b.spool
	if b.queue, err = simplequeue.New(pgtest.Pool(b.t, b.proxy.URL(), 8), queue); err != nil {
		b.t.Fatalf("New: %v", err)
	}
}

// run replays until the rig is closed.
func (b *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.spool.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
		b.stop = nil
	}
}

func (b *rig) close() {
	b.t.Helper()
	if b.stop != nil {
		b.stop()
	}
	if err := b.spool.Close(); err != nil {
		b.t.Errorf("Close: %v", err)
	}
}

// put inserts a job that has to end in the spool or not.
func (b *rig) put(job simplequeue.NewJob, spooled bool) simplequeue.Inserted {
	b.t.Helper()
	r, err := b.queue.Insert(b.t.Context(), job)
	if err != nil {
		b.t.Fatalf("Insert: %v", err)
	}
	if r.Spooled != spooled {
		b.t.Fatalf("Insert: spooled is %v, want %v", r.Spooled, spooled)
	}
	return r
}

// drained waits until nothing waits in the spool.
func (b *rig) drained() {
	b.t.Helper()
	eventually(b.t, "the spool is empty", func() bool { return b.spool.Stats().Jobs == 0 })
}

// numbers are the payloads of the jobs of a queue, in the order in which they
// run.
func (b *rig) numbers(queue string) []int {
	b.t.Helper()
	rows, err := b.direct.Query(context.Background(), "SELECT (payload #>> '{}')::integer FROM simplequeue.job_queue WHERE queue = $1 ORDER BY seq", queue)
	if err != nil {
		b.t.Fatal(err)
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		b.t.Fatal(err)
	}
	return numbers
}

func (b *rig) want(queue string, want ...int) {
	b.t.Helper()
	if got := b.numbers(queue); !slices.Equal(got, want) {
		b.t.Errorf("queue %s holds %v, want %v", queue, got, want)
	}
}

func (b *rig) exec(sql string) {
	b.t.Helper()
	if _, err := b.direct.Exec(b.t.Context(), sql); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// eventually waits for a condition, two minutes at most.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func job(queue string, number int) simplequeue.NewJob {
	return simplequeue.NewJob{Queue: queue, Payload: number}
}

func jobs(queue string, from, to int) (list []simplequeue.NewJob) {
	for n := from; n <= to; n++ {
		list = append(list, job(queue, n))
	}
	return list
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// payloads are the payloads of the jobs of entries, as text.
func payloads(entries []spool.Entry) (texts []string) {
	for _, e := range entries {
		for _, j := range e.Jobs {
			text, _ := j.Payload.(json.RawMessage)
			texts = append(texts, fmt.Sprintf("%s:%s", j.Queue, text))
		}
	}
	return texts
}
