//go:build unix

package simplequeue_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// These tests look at the memory of a whole process, and so have one to
// themselves.

const (
	mebibyte = 1 << 20
	sayEvery = 100 // jobs with large payloads
)

// goMemory is what the Go runtime has of the system's memory: all but thread
// stacks and the program's text.
func goMemory() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

// liveHeap is what is left on the heap after a collection, at a moment at which no
// statement is under way: the parameters of one that claims from thousands of
// queues take half a megabyte.
func liveHeap() int64 {
	least := int64(math.MaxInt64)
	for range 25 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what the pools of the first one let go
		runtime.ReadMemStats(&m)
		least = min(least, int64(m.HeapAlloc))
		time.Sleep(20 * time.Millisecond)
	}
	return least
}

func init() {
	// A worker of jobs with large payloads, which says how much memory it had at
	// most once it has done as many as it is told to, with the payload memory it
	// is told to have, and how far it is meanwhile. Its handlers hold on until that is used up, or far more.
	scenarios["large payloads"] = func(w *workerProcess) {
		var jobs int64
		var memory int
		_, _ = fmt.Sscan(w.argument, &jobs, &memory)
		var began, inside, wrong atomic.Int64
		var q *simplequeue.SimpleQueue
		q = w.queue(simplequeue.Options{
			QueuePermits: 500, PayloadMemory: memory, HeartbeatInterval: 5 * time.Second,
			Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("large", func(_ context.Context, job *simplequeue.Job) error {
				if len(job.Payload)+len(job.Raw) != mebibyte {
					wrong.Add(1)
				}
				inside.Add(1)
				defer inside.Add(-1)
				last := began.Add(1) > jobs-int64(memory/mebibyte)
				for since := time.Now(); !last && time.Since(since) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
					if q.Stats().PayloadBytes > int64(memory-mebibyte) || inside.Load() > 10*int64(memory/mebibyte) {
						break
					}
				}
				return nil
			})},
		})
		before, most := goMemory(), int64(0)
		go func() { w.say("error: Run: %v", q.Run(context.Background())) }()
		for said := int64(0); said < jobs; time.Sleep(2 * time.Millisecond) {
			most = max(most, goMemory())
			if done := q.Stats().Completed; done >= said+sayEvery {
				said += sayEvery
				w.say("done %d", said)
			}
		}
		w.say("most %d %d", most-before, wrong.Load())
		w.hear()
		os.Exit(0)
	}

	scenarios["flat"] = func(w *workerProcess) {
		kinds := simplequeue.NewMux("kinds")
		for i := range 100 {
			kinds.HandleFunc(fmt.Sprint("known ", i), nothing)
		}
		opts := simplequeue.Options{
			HeartbeatInterval: 5 * time.Second, QueuePermits: 500,
			Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing},
			Handlers: []simplequeue.Handler{
				kinds, simplequeue.HandlerFunc("noop", nothing), simplequeue.HandlerFunc("tenant.*", nothing),
				simplequeue.HandlerFunc("cancelled", func(ctx context.Context, _ *simplequeue.Job) error {
					<-ctx.Done()
					return context.Cause(ctx)
				}),
			},
		}
		q := w.queue(opts)
		go func() { w.say("error: Run: %v", q.Run(context.Background())) }()
		f := flat{w: w, q: q}
		for w.in.Scan() {
			var n, from int
			word, numbers, _ := strings.Cut(w.in.Text(), " ")
			_, _ = fmt.Sscan(numbers, &n, &from)
			switch word {
			case "noop":
				f.noop(n)
			case "mixed":
				f.mixed(n, from)
			case "tenants":
				f.tenants(n, from)
			}
			f.settle()
			w.say("use %d %d", liveHeap(), runtime.NumGoroutine())
		}
		os.Exit(0)
	}
}

// flat inserts jobs into its own worker and waits until they have ended.
type flat struct {
	w    *workerProcess
	q    *simplequeue.SimpleQueue
	jobs int64
}

func (f *flat) insert(jobs []simplequeue.NewJob) []simplequeue.Inserted {
	in, err := f.q.InsertMany(context.Background(), jobs)
	if err != nil {
		f.w.say("error: %v", err)
	}
	f.jobs += int64(len(jobs))
	return in
}

// settle waits until every job has run once, or is parked.
func (f *flat) settle() {
	for {
		s := f.q.Stats()
		if s.Completed+s.DeadLettered+s.Parked >= f.jobs && s.Running == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// noop runs n jobs that do nothing, with few waiting at a time.
func (f *flat) noop(n int) {
	const batch = 5000
	for ; n > 0; n -= batch {
		f.insert(slices.Repeat([]simplequeue.NewJob{{Queue: "noop"}}, min(n, batch)))
		for f.jobs-f.q.Stats().Completed > 2*batch {
			time.Sleep(time.Millisecond)
		}
	}
}

// tenants runs a job of each of n queues that a prefix matches.
func (f *flat) tenants(n, from int) {
	jobs := make([]simplequeue.NewJob, n)
	for i := range jobs {
		jobs[i].Queue = fmt.Sprint("tenant.", from+i)
	}
	f.insert(jobs)
}

// mixed runs jobs of n queues, known and unknown kinds, and jobs that are
// cancelled while they run and before; and inserts into n queues that nobody
// serves. Names count from a number.
func (f *flat) mixed(n, from int) {
	f.tenants(n, 0)
	var jobs []simplequeue.NewJob
	for i := range n {
		jobs = append(jobs,
			simplequeue.NewJob{Queue: "kinds", Kind: fmt.Sprint("known ", i%100)},
			simplequeue.NewJob{Queue: "kinds", Kind: fmt.Sprint("unknown ", from+i)})
	}
	f.insert(jobs)
	var running []uuid.UUID
	for _, in := range f.insert(slices.Repeat([]simplequeue.NewJob{{Queue: "cancelled"}}, 50)) {
		running = append(running, in.ID)
	}
	for f.q.Stats().Queues["cancelled"].Running < len(running) {
		time.Sleep(time.Millisecond)
	}
	if _, err := f.q.CancelMatching(context.Background(), simplequeue.Filter{IDs: running}, ""); err != nil {
		f.w.say("error: %v", err)
	}
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: fmt.Sprint("unserved.", from+i), Delay: time.Hour, Fingerprint: "later"}
	}
	f.insert(jobs[:n])
	if _, err := f.q.CancelMatching(context.Background(), simplequeue.Filter{Fingerprint: "later"}, ""); err != nil {
		f.w.say("error: %v", err)
	}
	f.jobs -= int64(n) // which never run
}

// use is what a process says about its memory.
type use struct{ heap, goroutines int }

func askUse(t *testing.T, p *process, word string, numbers ...int) (u use) {
	t.Helper()
	line := word
	for _, n := range numbers {
		line += " " + strconv.Itoa(n)
	}
	if _, err := p.in.Write([]byte(line + "\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(p.await(t, "use"), &u.heap, &u.goroutines); err != nil {
		t.Fatal(err)
	}
	return u
}

// flatSince fails the test if the process has grown by more than some bytes.
func (u use) flatSince(t *testing.T, what string, before use, bytes int) {
	t.Helper()
	t.Logf("%s: live heap %d kB, %d goroutines, before %d kB, %d", what, u.heap>>10, u.goroutines, before.heap>>10, before.goroutines)
	if u.heap > before.heap+bytes {
		t.Errorf("%s: the live heap has grown from %d to %d bytes", what, before.heap, u.heap)
	}
	if u.goroutines > before.goroutines+5 {
		t.Errorf("%s: goroutines have grown from %d to %d", what, before.goroutines, u.goroutines)
	}
}

// TestMemoryStaysFlat: jobs leave nothing behind in the process, whatever their
// kinds and outcomes, nor do names of queues that it does not serve. A name that
// it serves costs what the documentation says.
func TestMemoryStaysFlat(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "flat", pgtest.Database(t), "")
	askUse(t, p, "noop", 10_000)
	noop := askUse(t, p, "noop", 2000)
	askUse(t, p, "noop", 12_000).flatSince(t, "24,000 jobs", noop, mebibyte/2)

	const names = 1000
	askUse(t, p, "mixed", names, 0)
	askUse(t, p, "mixed", names, 0) // all connections and statements are in use by now
	mixed := askUse(t, p, "mixed", names, names)
	after := askUse(t, p, "mixed", names, 2*names)
	after.flatSince(t, "a mix of jobs", mixed, mebibyte/2)
	askUse(t, p, "tenants", names, 2*names).flatSince(t, "1,000 new names", after, names*2048)
}

// TestMemoryStaysFlatForMillions is the same for five million jobs.
func TestMemoryStaysFlatForMillions(t *testing.T) {
	if os.Getenv(longVariable) == "" {
		t.Skipf("takes many minutes: set %s", longVariable)
	}
	p := startProcess(t, "flat", pgtest.Database(t), "")
	const all, warm, step = 5_000_000, 500_000, 50_000
	var first use
	began := time.Now()
	for done := step; done <= all; done += step {
		u := askUse(t, p, "noop", step)
		switch {
		case done == warm:
			first = u
		case done > warm && done%warm == 0:
			u.flatSince(t, fmt.Sprintf("%d jobs in %v", done, time.Since(began).Round(time.Second)), first, mebibyte)
		}
	}
}

// TestLargePayloadsKeepToTheStatedBound: payloads of 1 MiB, with permits for
// five hundred, take the process no further than the bound that
// docs/operations.md states: 300 of them, or a thousand with
// SIMPLEQUEUE_TEST_LONG=1.
func TestLargePayloadsKeepToTheStatedBound(t *testing.T) {
	t.Parallel()
	const memory, conns = 16 * mebibyte, 3
	const bound = 2*(memory+4*conns*mebibyte) + 32*mebibyte + 500*(8<<10)
	jobs := 300
	if os.Getenv(longVariable) != "" {
		jobs = 1000
	}
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 2)
	q := newQueue(t, pool, simplequeue.Options{})
	// The server copies what it has compressed once in no time.
	text := insert(t, q, simplequeue.NewJob{Queue: "model", Payload: strings.Repeat("x", mebibyte-2)})
	bytes := insert(t, q, raw("model", "", mebibyte))
	if _, err := q.InsertMany(t.Context(), repeat(jobs, raw("large", "", 2000))); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `
		WITH sized AS (UPDATE simplequeue.job_queue SET payload_bytes = $3 WHERE queue = 'large' RETURNING id)
		UPDATE simplequeue.job_payload AS p SET payload = m.payload, raw = m.raw
		FROM (SELECT id, row_number() OVER () AS n FROM sized) AS s, simplequeue.job_payload AS m
		WHERE p.id = s.id AND m.id = CASE WHEN n % 2 = 0 THEN $1::uuid ELSE $2::uuid END`, text, bytes, mebibyte); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p := startProcess(t, "large payloads", url, fmt.Sprint(jobs, " ", memory))
	for range jobs / sayEvery {
		p.await(t, "done")
	}
	var most, wrong int
	if _, err := fmt.Sscan(p.await(t, "most"), &most, &wrong); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB at most, bound %d MiB, %v", most/mebibyte, bound/mebibyte, time.Since(began))
	if most > bound || wrong != 0 {
		t.Errorf("%d MiB at most, want at most %d; %d payloads arrived damaged", most/mebibyte, bound/mebibyte, wrong)
	}
	if c := counts(t, q, "large"); c[simplequeue.StateCompleted] != int64(jobs) {
		t.Errorf("%v, want %d completed", c, jobs)
	}
}
