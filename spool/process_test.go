//go:build unix

package spool_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/spool"
)

// A producer is the test binary itself. It inserts numbers, on several queues at
// once, and says "queue number" when an insert has returned.

const (
	databaseVariable = "SIMPLEQUEUE_TEST_PRODUCER_DATABASE"
	fileVariable     = "SIMPLEQUEUE_TEST_PRODUCER_FILE"
	firstVariable    = "SIMPLEQUEUE_TEST_PRODUCER_FIRST"
	streams          = 3
)

func init() {
	processMain = func() bool {
		url := os.Getenv(databaseVariable)
		if url == "" {
			return false
		}
		if err := produce(url); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return true
	}
}

// produce is the whole program of a producer. It ends when it is killed, or its
// standard input ends.
func produce(url string) error {
	first, err := strconv.Atoi(os.Getenv(firstVariable))
	if err != nil {
		return err
	}
	s, err := spool.Open(os.Getenv(fileVariable), spool.Options{Logger: quiet, Patience: time.Second})
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		return err
	}
	queue, err := simplequeue.New(pool, simplequeue.Options{Logger: quiet, Spool: s})
	if err != nil {
		return err
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	go func() { say("error: Run: %v", s.Run(context.Background())) }()
	for stream := range streams {
		go func() {
			for n := first; ; n++ {
				r, err := queue.Insert(context.Background(), job(fmt.Sprintf("q%d", stream), n))
				if err != nil {
					say("error: %v", err)
					return
				}
				say("%d %d %v", stream, n, r.Spooled)
				time.Sleep(rand.N(4 * time.Millisecond))
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

// producer is a producer as its test sees it.
type producer struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu      sync.Mutex
	said    [streams][]int
	spooled int
	failed  string
}

func startProducer(t *testing.T, url, path string, first int) *producer {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &producer{cmd: exec.Command(binary), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), databaseVariable+"="+url, fileVariable+"="+path, firstVariable+"="+strconv.Itoa(first))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.heard(lines.Text())
		}
		_ = p.cmd.Wait() // it was killed
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *producer) heard(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var stream, n int
	var spooled bool
	if _, err := fmt.Sscanf(line, "%d %d %t", &stream, &n, &spooled); err != nil {
		p.failed = line
		return
	}
	p.said[stream] = append(p.said[stream], n)
	if spooled {
		p.spooled++
	}
}

// kill ends the producer as a crash does.
func (p *producer) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// The ways of an insert.
const (
	direct  = "direct"
	spooled = "spooled"
	either  = "either"
)

// inserted waits until so many inserts more have returned, that went one way.
func (p *producer) inserted(t *testing.T, many int, way string) {
	t.Helper()
	count := func() (n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.failed != "" {
			t.Fatalf("the producer says %q", p.failed)
		}
		for _, said := range p.said {
			n += len(said)
		}
		switch way {
		case direct:
			n -= p.spooled
		case spooled:
			n = p.spooled
		}
		return n
	}
	from := count()
	eventually(t, fmt.Sprintf("%d inserts return: %s", many, way), func() bool { return count() >= from+many })
}

// The database dies under load, the producer is killed meanwhile, and again while
// it replays; then both are there again. Each insert that has returned is in the
// database once, and in order; one that has not, at most once.
func TestSpoolSurvivesOutageAndKill(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, nil)
	pgtest.Migrated(t, server.URL())
	path := filepath.Join(t.TempDir(), "jobs.spool")
	var all []*producer
	start := func() *producer {
		p := startProducer(t, server.URL(), path, 1_000_000*(len(all)+1))
		all = append(all, p)
		return p
	}
	p := start()
	p.inserted(t, 50, direct)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	p.inserted(t, 200, spooled)
	p.kill()
	p = start() // finds the file of the other, and no database
	p.inserted(t, 200, spooled)
	p.kill()
	p = start()
	p.inserted(t, 50, spooled)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 4 { // while it replays
		time.Sleep(rand.N(30 * time.Millisecond))
		p.kill()
		p = start()
		p.inserted(t, 1, either)
	}
	p.inserted(t, 100, direct)
	p.kill()

	last, err := spool.Open(path, spool.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Pool(t, server.URL(), 2)
	if _, err := simplequeue.New(pool, simplequeue.Options{Logger: quiet, Spool: last}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- last.Run(ctx) }()
	b := &rig{t: t, direct: pool, spool: last}
	b.drained()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := last.Stats(); s.Aside != 0 {
		t.Errorf("%d calls are set aside", s.Aside)
	}
	if err := last.Close(); err != nil {
		t.Error(err)
	}
	for stream := range streams {
		got := b.numbers(fmt.Sprintf("q%d", stream))
		if !slices.IsSorted(got) {
			t.Errorf("queue %d is out of order: %v", stream, got)
		}
		there := map[int]int{}
		for _, n := range got {
			if there[n]++; there[n] > 1 {
				t.Errorf("queue %d holds %d twice", stream, n)
			}
		}
		said := 0
		for _, p := range all {
			for _, n := range p.said[stream] {
				if said++; there[n] == 0 {
					t.Errorf("queue %d has lost %d", stream, n)
				}
			}
		}
		// Each producer may have had one insert on its way when it was killed.
		if extra := len(got) - said; extra < 0 || extra > len(all) {
			t.Errorf("queue %d holds %d jobs more than were acknowledged, want at most %d", stream, extra, len(all))
		}
	}
}

// A second process on the file is told so.
func TestASecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	path := filepath.Join(t.TempDir(), "jobs.spool")
	p := startProducer(t, url, path, 1)
	p.inserted(t, 1, direct)
	second := startProducer(t, url, path, 1)
	<-second.ended
	if !strings.Contains(second.failed, "in use") || !strings.Contains(second.failed, path) {
		t.Errorf("the second process says %q", second.failed)
	}
	p.kill()
	s, err := spool.Open(path, spool.Options{})
	if err != nil {
		t.Fatalf("after the first was killed: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
