package main

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestMain lets the test program be its own worker process, too.
func TestMain(m *testing.M) {
	if setup := os.Getenv(workerVariable); setup != "" {
		if err := workProcess(context.Background(), setup); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	pgtest.Main(m)
}
