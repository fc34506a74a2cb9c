package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// place is where a worker or a producer runs: it has a proxy of its own, which
// outlives the processes that follow each other there.
type place struct {
	role       string
	number     int
	generation int
	proxy      *proxy
	process    *process // nil while none runs
}

// process is a running worker or producer.
type process struct {
	name   string
	cmd    *exec.Cmd
	in     io.Closer
	ended  chan struct{} // closed once it has ended
	ending bool          // somebody has ended it, or wants to; guarded by the stage's mutex
	life   int           // its place in the stage's lives
}

// start runs a process at a place where none runs.
func (s *stage) start(p *place) error {
	p.generation++
	told := s.setup
	told.Role, told.Name = p.role, fmt.Sprintf("%s%d.%d", p.role, p.number, p.generation)
	told.URL, told.Witness = s.urlVia(p.proxy), s.witnessURL
	told.Seed = s.seed ^ uint64(p.number)<<32 ^ uint64(p.generation)<<40
	if s.tell != nil {
		s.tell(p, &told)
	}
	text, err := json.Marshal(told)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.logs, told.Name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.program)
	cmd.Env = append(os.Environ(), setupVariable+"="+string(text), clockEnvironment(told.ClockOff))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the one that started it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	proc := &process{name: told.Name, cmd: cmd, in: in, ended: make(chan struct{})}
	s.mu.Lock()
	proc.life = len(s.lives)
	s.lives = append(s.lives, life{process: proc.name, start: time.Now()})
	p.process = proc
	s.mu.Unlock()
	go s.watch(proc)
	return nil
}

// watch waits for a process to end and notes it.
func (s *stage) watch(p *process) {
	err := p.cmd.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.lives[p.life]
	l.end = time.Now()
	if err != nil {
		l.how = err.Error()
	}
	switch code := p.cmd.ProcessState.ExitCode(); {
	case code == exitMute:
		s.failures = append(s.failures, fmt.Errorf("%s could not tell the witness: %s", p.name, s.lastLines(p.name)))
	case p.ending && err != nil && !killed(err):
		l.how, l.unexpected = "did not stop well: "+l.how, true
	case !p.ending:
		deadly := killed(err) || code == exitDeadly || s.ranOutOfMemory(p.name)
		l.unexpected = !s.scenario.mortal || !strings.HasPrefix(p.name, "worker") || !deadly
	}
	close(p.ended)
}

// ranOutOfMemory reports whether that is how a process ended, by its log.
func (s *stage) ranOutOfMemory(name string) bool {
	text, err := os.ReadFile(filepath.Join(s.logs, name+".log"))
	return err == nil && (bytes.Contains(text, []byte("out of memory")) || bytes.Contains(text, []byte("cannot allocate memory")) || bytes.Contains(text, []byte("failed to create new OS thread")))
}

// killed reports whether a process ended by SIGKILL.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// signal sends a signal to the process at a place. One that is to end it is
// announced by ending.
func (s *stage) signal(p *place, sig syscall.Signal, ending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ending {
		p.process.ending = true
	}
	_ = p.process.cmd.Process.Signal(sig) // it may have ended by itself
}

// kill ends the process at a place as a crash would.
func (s *stage) kill(p *place) {
	s.signal(p, syscall.SIGKILL, true)
	<-p.process.ended
}

// stopLimit is how long a process may take to stop: a worker as long as the
// phases of its stop say, and a moment for the rest; a producer for as long as a
// round of a workload may.
func (s *stage) stopLimit(p *place) time.Duration {
	const cancelAndFlush, moment = 10 * time.Second, 2 * time.Second
	if p.role == "worker" {
		return s.setup.Drain + cancelAndFlush + moment
	}
	return 40 * time.Second
}

// stop ends the process at a place with grace, and fails where that takes too
// long.
func (s *stage) stop(p *place) error {
	s.signal(p, syscall.SIGTERM, true)
	select {
	case <-p.process.ended:
		return nil
	case <-time.After(s.stopLimit(p)):
		s.kill(p)
		return fmt.Errorf("%s did not stop within %v", p.process.name, s.stopLimit(p))
	}
}

// revive starts a process where one has ended, until ctx ends: what a supervisor
// does.
func (s *stage) revive(ctx context.Context) {
	for pause(ctx, 100*time.Millisecond) {
		for _, p := range s.workers {
			select {
			case <-p.process.ended:
				if err := s.start(p); err != nil {
					s.fail(err)
				}
			default:
			}
		}
	}
}

// lastLines is the end of a process's log.
func (s *stage) lastLines(name string) string {
	text, err := os.ReadFile(filepath.Join(s.logs, name+".log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}
