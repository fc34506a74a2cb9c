package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"github.com/simplequeue/simplequeue"
)

// deadlyCrashes is how many crashes in a row make a job bad where deadly ones are
// about: more than an innocent one meets.
const deadlyCrashes = 4

// exitDeadly is the exit status of a process that a job has ended.
const exitDeadly = 7

// Jobs that take their process with them: once, or always. They have few unique
// keys, which are free again only when such a job ends.
var deadly = register(workload{
	name: "deadly", special: true, ends: []string{"completed", "bad_job"}, every: 2 * time.Second, handle: handleDeadly, check: checkDeadly,
})

func init() {
	deadly.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		load := payload{Do: []string{"kill", "exit", "allocate"}[r.IntN(3)], Fails: 1}
		if r.IntN(2) == 0 {
			load.Fails = 1000
		}
		p.add(ctx, deadly, simplequeue.NewJob{
			Payload: load, Fingerprint: []string{"", "always"}[load.Fails/1000], UniqueKey: fmt.Sprint("deadly ", r.IntN(2)),
		})
	}
}

// hoard keeps what a handler allocates.
var hoard [][]byte

func handleDeadly(ctx context.Context, _ *worker, job *simplequeue.Job, p payload) error {
	if job.Attempt > p.Fails {
		return nil
	}
	switch p.Do {
	case "exit":
		os.Exit(exitDeadly)
	case "allocate":
		for range 1 << 12 {
			b := make([]byte, 16<<20)
			hoard = append(hoard, b)
		}
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	<-ctx.Done()
	return nil
}

// checkDeadly: a job ends as bad exactly when it kills always, after as many
// crashes as make it bad.
func checkDeadly(h *history) (found []violation) {
	for _, f := range h.finals {
		if f.workload != "deadly" {
			continue
		}
		if always := f.fingerprint == "always"; always != (f.state == "bad_job") || always && f.crash != deadlyCrashes {
			found = append(found, h.breach("I1 loss", f.id, "deadly job %v (always %t) ended as %s with %d crashes", f.id, always, f.state, f.crash))
		}
	}
	return found
}
