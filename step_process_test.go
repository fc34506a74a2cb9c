//go:build unix

package simplequeue_test

import (
	"context"
	"strings"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	// A worker that dies when it has run as many steps, in all of the job's
	// attempts, as its argument says.
	scenarios["steps"] = func(w *workerProcess) {
		w.run(simplequeue.Options{Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("steps", func(ctx context.Context, job *simplequeue.Job) error {
				for _, name := range []string{"a", "b", "c"} {
					value, err := simplequeue.Step(ctx, job, name, func(context.Context) (string, error) {
						w.say("runs %s", name)
						return strings.Repeat(name, 3), nil
					})
					if err != nil {
						return err
					}
					w.say("has %s", value)
					if name == w.argument {
						die()
					}
				}
				return job.SetResult("all")
			}),
		}})
	}
}

// A step that has returned has run for good: a worker that takes over from one
// that was killed right after it goes on with the next.
func TestStepsSurviveTheirWorker(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 4)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "steps", MaxAttempts: 5, Payload: "kept"})
	for _, last := range []string{"a", "b", ""} {
		p := startProcess(t, "steps", url, last)
		if last != "" {
			p.await(t, "has "+strings.Repeat(last, 3))
			p.awaitEnd(t)
			if p.count("runs ") != 1 {
				t.Errorf("the worker killed after step %s has run %d steps, want 1", last, p.count("runs "))
			}
			continue
		}
		info := awaitState(t, q, id, simplequeue.StateCompleted)
		eventually(t, "the last worker has said all", func() bool { return p.count("has ") >= 3 })
		if p.count("runs ") != 1 || p.count("has ") != 3 || string(info.Payload) != `"kept"` || info.CrashCount != 2 {
			t.Errorf("the last worker has run %d steps of %d, payload %s, %d crashes", p.count("runs "), p.count("has "), info.Payload, info.CrashCount)
		}
	}
	if n := countRows(t, pool, "job_payload"); n != 0 {
		t.Errorf("%d payloads are left behind", n)
	}
}

// count is how many lines with a prefix the process has said.
func (p *process) count(prefix string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}
