//go:build unix

package simplequeue_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

// A worker process of a test is the test binary itself, started with a scenario
// and a database in its environment. It tells the test what happens line by
// line on its standard output, and waits for words on its standard input.

const (
	scenarioVariable = "SIMPLEQUEUE_TEST_PROCESS"
	databaseVariable = "SIMPLEQUEUE_TEST_PROCESS_DATABASE"
	argumentVariable = "SIMPLEQUEUE_TEST_PROCESS_ARGUMENT"
)

// scenarios are what a worker process can be told to do.
var scenarios = map[string]func(w *workerProcess){}

func init() {
	processMain = func() bool {
		name := os.Getenv(scenarioVariable)
		if name == "" {
			return false
		}
		config, err := pgxpool.ParseConfig(os.Getenv(databaseVariable))
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		// What is sent first on a connection is what the engine wants to say.
		config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
		pool, err := pgxpool.NewWithConfig(context.Background(), config)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		scenarios[name](&workerProcess{pool: pool, argument: os.Getenv(argumentVariable), in: bufio.NewScanner(os.Stdin)})
		return true
	}
}

// workerProcess is the inside of a worker process.
type workerProcess struct {
	pool     *pgxpool.Pool
	argument string
	in       *bufio.Scanner
}

// say sends a line to the test.
func (w *workerProcess) say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// hear waits for a line of the test.
func (w *workerProcess) hear() { w.in.Scan() }

// run works until the process is killed or its standard input ends.
func (w *workerProcess) run(opts simplequeue.Options) {
	if err := w.queue(opts).Run(context.Background()); err != nil {
		w.say("error: %v", err)
	}
	os.Exit(1)
}

// queue returns a queue with brief leases.
func (w *workerProcess) queue(opts simplequeue.Options) *simplequeue.SimpleQueue {
	opts.Logger = slog.New(slog.DiscardHandler)
	q, err := simplequeue.New(w.pool, briefLeases(opts))
	if err != nil {
		w.say("error: %v", err)
		os.Exit(1)
	}
	return q
}

// die ends the process as a crash does: nothing is run, nothing is written.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// process is a worker process as its test sees it.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{}

	mu    sync.Mutex
	lines []string
	read  int // lines handed out by await
}

// startProcess starts a worker process, which is killed when the test ends.
func startProcess(t testing.TB, scenario, database, argument string) *process {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(binary), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(),
		scenarioVariable+"="+scenario, databaseVariable+"="+database, argumentVariable+"="+argument)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
		}
		_ = p.cmd.Wait() // how it ended is for the test to know
	}()
	t.Cleanup(func() {
		p.signal(t, syscall.SIGKILL)
		p.awaitEnd(t)
	})
	return p
}

// await returns the next line that starts with a prefix, without the prefix.
func (p *process) await(t testing.TB, prefix string) (rest string) {
	t.Helper()
	eventually(t, "the process says "+prefix, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for ; p.read < len(p.lines); p.read++ {
			line := p.lines[p.read]
			if found, ok := strings.CutPrefix(line, prefix); ok {
				p.read++
				rest = strings.TrimSpace(found)
				return true
			}
			if strings.HasPrefix(line, "error:") {
				t.Fatalf("the process says %q", line)
			}
		}
		return false
	})
	return rest
}

// tell sends the process a line.
func (p *process) tell(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(p.in, "go on\n"); err != nil {
		t.Fatal(err)
	}
}

func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	select {
	case <-p.ended:
	default:
		if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal: %v", err)
		}
	}
}

func (p *process) awaitEnd(t testing.TB) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(2 * time.Minute):
		t.Fatal("the process did not end within two minutes")
	}
}

// history is what handlers note about their runs, over connections that the
// engine does not use, by the database's clock.
type history struct{ pool *pgxpool.Pool }

func newHistory(t testing.TB, pool *pgxpool.Pool) *history {
	t.Helper()
	_, err := pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS history (
		job uuid, attempt integer, event text, at timestamptz NOT NULL DEFAULT clock_timestamp())`)
	if err != nil {
		t.Fatal(err)
	}
	return &history{pool}
}

// note records an event of an attempt. It is called with a context that the
// engine does not cancel.
func (h *history) note(job *simplequeue.Job, event string) error {
	_, err := h.pool.Exec(context.Background(), "INSERT INTO history (job, attempt, event) VALUES ($1, $2, $3)", job.ID, job.Attempt, event)
	return err
}

// check verifies that of the given jobs none is lost and none has completed
// twice: each is terminal, in one row, each attempt started at most once, and
// the attempt that completed a job is one whose handler came to its end, the
// last one that started. It returns how many handlers' ends were for nothing.
func (h *history) check(t testing.TB, ids []uuid.UUID) (repeated int) {
	t.Helper()
	one := func(what, query string, args ...any) (n int) {
		t.Helper()
		if err := h.pool.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return n
	}
	for what, query := range map[string]string{
		"lost, not terminal or there twice": `SELECT count(*) FROM unnest($1::uuid[]) AS i(id) WHERE
			(SELECT count(*) FROM simplequeue.job AS j WHERE j.id = i.id AND j.finished_at IS NOT NULL) <> 1
			OR (SELECT count(*) FROM simplequeue.job AS j WHERE j.id = i.id) <> 1`,
		"with an attempt that started twice": `SELECT count(*) FROM (SELECT job, attempt FROM history
			WHERE event = 'start' AND job = ANY ($1) GROUP BY job, attempt HAVING count(*) > 1) AS twice`,
		"completed by an attempt that did not come to its end": `SELECT count(*) FROM simplequeue.job_queue_archive AS a
			WHERE a.id = ANY ($1) AND NOT EXISTS (SELECT FROM history AS h
			WHERE h.job = a.id AND h.attempt = a.attempt AND h.event = 'end')`,
		"started again after they had completed": `SELECT count(*) FROM simplequeue.job_queue_archive AS a
			WHERE a.id = ANY ($1) AND EXISTS (SELECT FROM history AS h
			WHERE h.job = a.id AND h.event = 'start' AND (h.attempt > a.attempt OR h.at > a.finished_at))`,
	} {
		if n := one(what, query, ids); n != 0 {
			t.Errorf("%d jobs %s", n, what)
		}
	}
	return one("ends", "SELECT count(*) FROM history WHERE event = 'end' AND job = ANY ($1)", ids) -
		one("completed", "SELECT count(*) FROM simplequeue.job_queue_archive WHERE id = ANY ($1)", ids)
}
