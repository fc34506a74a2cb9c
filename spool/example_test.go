package spool_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/spool"
)

// exampleTest is as much of a test as a database needs.
type exampleTest struct {
	testing.TB
	cleanups []func()
}

func (*exampleTest) Helper()                      {}
func (e *exampleTest) Cleanup(f func())           { e.cleanups = append(e.cleanups, f) }
func (*exampleTest) Errorf(s string, args ...any) { fmt.Printf(s+"\n", args...) }
func (*exampleTest) Fatalf(s string, args ...any) { panic(fmt.Sprintf(s, args...)) }

// unsteadyPool is a pool on a database behind a network that can be cut.
func unsteadyPool() (pool *pgxpool.Pool, network *pgtest.Proxy, done func()) {
	e := &exampleTest{}
	network = pgtest.NewProxy(e, pgtest.Database(e))
	pool = pgtest.Pool(e, network.URL(), 4)
	return pool, network, func() {
		for i := len(e.cleanups) - 1; i >= 0; i-- {
			e.cleanups[i]()
		}
	}
}

func Example() {
	pool, network, done := unsteadyPool()
	defer done()
	folder, err := os.MkdirTemp("", "spool")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)

	s, err := spool.Open(filepath.Join(folder, "jobs.spool"), spool.Options{Logger: quiet})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	queue, err := simplequeue.New(pool, simplequeue.Options{Spool: s})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()

	network.Cut()
	r, err := queue.Insert(ctx, simplequeue.NewJob{Queue: "emails", Payload: "Welcome"})
	fmt.Println("spooled:", r.Spooled, err)
	fmt.Println("wait in the file:", s.Stats().Jobs)

	network.Heal()
	for s.Stats().Jobs > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	info, err := queue.Get(ctx, r.ID)
	fmt.Println("in the database:", info.State, err)
	stop()
	fmt.Println("replay ended:", <-ended)
	// Output:
	// spooled: true <nil>
	// wait in the file: 1
	// in the database: pending <nil>
	// replay ended: <nil>
}
