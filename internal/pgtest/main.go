package pgtest

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs the tests of a package, stops the server that they started and
// exits with the tests' code. When the tests passed it also checks that they
// left no goroutine behind.
//
// Tests mostly wait, for PostgreSQL and for time to pass: unless -parallel says
// otherwise, three of them run at once for each processor.
func Main(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(3 * runtime.GOMAXPROCS(0)))
	}
	os.Exit(run(m, shared, os.Stderr))
}

// tests is the part of *testing.M that Main needs.
type tests interface{ Run() int }

func run(m tests, s *server, stderr io.Writer) int {
	code := m.Run()
	if err := s.stop(); err != nil {
		fmt.Fprintln(stderr, "pgtest:", err)
		code = max(code, 1)
	}
	if code != 0 {
		return code
	}
	// What waits for jobs keeps its connection for a moment.
	err := goleak.Find()
	for until := time.Now().Add(4 * time.Second); err != nil && time.Now().Before(until); {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(stderr, "pgtest: the tests passed but left goroutines behind:", err)
		return 1
	}
	return 0
}
