package main

import (
	"bufio"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// workerVariable is the environment variable that makes this program a worker
// process. It holds a Setup as JSON.
const workerVariable = "SIMPLEQUEUE_BENCH_WORKER"

// message is what a worker process writes to its standard output, as gob.
type message struct {
	Attempts []attempt
	Counters map[string]float64 // in the last message
}

// runProcess runs a worker process until ctx ends and takes down what it does.
func (t *trial) runProcess(ctx context.Context) error {
	setup, err := json.Marshal(t.setup)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// The end of its standard input tells it to stop, and comes by itself should
	// this process die.
	c := exec.CommandContext(context.WithoutCancel(ctx), program, os.Args[1:]...)
	c.Env = append(os.Environ(), workerVariable+"="+string(setup))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	t.addProcess(c.Process.Pid)
	stop := context.AfterFunc(ctx, func() { _ = in.Close() })
	defer stop()
	messages := gob.NewDecoder(bufio.NewReader(out))
	for {
		var m message
		if err = messages.Decode(&m); err != nil {
			break
		}
		for _, a := range m.Attempts {
			t.ledger.note(a)
		}
		t.addCounters(m.Counters)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	_ = in.Close()
	return errors.Join(err, c.Wait())
}

// workProcess is the main function of a worker process.
func workProcess(ctx context.Context, setup string) error {
	var s Setup
	if err := json.Unmarshal([]byte(setup), &s); err != nil {
		return fmt.Errorf("%s: %w", workerVariable, err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	newContestant, ok := contestants[s.Contestant]
	if !ok {
		return fmt.Errorf("%s names no contestant: %q", workerVariable, s.Contestant)
	}
	c := newContestant(s)
	if err := c.Open(ctx); err != nil {
		return err
	}
	defer c.Close()

	teller := newTeller(os.Stdout)
	telling, done := context.WithCancel(context.Background())
	told := make(chan error, 1)
	go func() { told <- every(telling, 5*time.Millisecond, func(int) error { return teller.flush(nil) }) }()
	err := c.Run(ctx, newWork(s, teller.note))
	done()
	err = errors.Join(err, <-told)
	var counters map[string]float64
	if c, ok := c.(counting); ok {
		counters = c.Counters()
	}
	return errors.Join(err, teller.flush(counters))
}

// teller collects the attempts of a worker process and sends them in bundles.
type teller struct {
	messages *gob.Encoder

	mu       sync.Mutex
	attempts []attempt
}

func newTeller(to io.Writer) *teller { return &teller{messages: gob.NewEncoder(to)} }

func (t *teller) note(a attempt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.attempts = append(t.attempts, a)
}

// flush is called by one goroutine at a time.
func (t *teller) flush(counters map[string]float64) error {
	t.mu.Lock()
	m := message{Attempts: t.attempts, Counters: counters}
	t.attempts = nil
	t.mu.Unlock()
	if m.Attempts == nil && m.Counters == nil {
		return nil
	}
	return t.messages.Encode(m)
}
