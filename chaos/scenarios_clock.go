package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

func init() {
	addScenario(scenario{
		name: "clock", order: 20, about: "the clocks of workers and producers are off by an hour, either way", strict: true,
		prepare: prepareClocks, inject: injectNothing("clocks off"),
	})
}

// clockVariable holds by how many seconds a process's clock is off.
const clockVariable = "SIMPLEQUEUE_CHAOS_CLOCK"

// prepareClocks builds a program for the processes whose clock can be off. Go
// programs ask the kernel for the time without the C library, so nothing that is
// preloaded, libfaketime among it, can come between; the program is built with a
// time.Now of its own instead.
func prepareClocks(ctx context.Context, s *stage) error {
	if err := calm(ctx, s); err != nil {
		return err
	}
	program, err := buildWithClock(ctx, s.logs)
	if err != nil {
		return notHere("a program with a clock that is off cannot be built: " + err.Error())
	}
	s.program = program
	s.tell = func(p *place, told *setup) {
		told.ClockOff = []time.Duration{time.Hour, -time.Hour, 0}[(p.number-1)%3]
		if p.role == "producer" {
			told.ClockOff = []time.Duration{time.Hour, -time.Hour}[s.rand.IntN(2)]
		}
	}
	return nil
}

func buildWithClock(ctx context.Context, dir string) (program string, err error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	source := filepath.Join(string(bytes.TrimSpace(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	const asks = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n"
	if bytes.Count(text, []byte(asks)) != 1 {
		return "", fmt.Errorf("%s does not look as expected", source)
	}
	text = bytes.Replace(text, []byte(asks), []byte("\tsec, nsec, mono := runtimeNow()\n\tsec += chaosOff\n\tif mono == 0 {\n"), 1)
	patched, overlay := filepath.Join(dir, "time.go.txt"), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(patched, text, 0o600); err != nil {
		return "", err
	}
	extra := filepath.Join(dir, "off.go.txt")
	if err := os.WriteFile(extra, []byte(fmt.Sprintf(`package time

import "syscall"

// chaosOff is by how many seconds the clock is off.
var chaosOff = func() (n int64) {
	text, _ := syscall.Getenv(%q)
	sign := int64(1)
	for _, c := range text {
		if c == '-' {
			sign = -1
			continue
		}
		n = 10*n + int64(c-'0')
	}
	return sign * n
}()
`, clockVariable)), 0o600); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{
		source: patched, filepath.Join(filepath.Dir(source), "chaos_off.go"): extra,
	}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", err
	}
	program = filepath.Join(dir, "chaos-with-clock")
	build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", program, "github.com/simplequeue/simplequeue/chaos")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
}

// clockEnvironment tells a process by how much its clock is off.
func clockEnvironment(off time.Duration) string {
	return clockVariable + "=" + strconv.FormatInt(int64(off/time.Second), 10)
}

// checkOwnClock makes sure that the process's clock is as far off as it should be.
func checkOwnClock(ctx context.Context, w *witness, want time.Duration) error {
	now, err := w.now(ctx)
	if err != nil {
		return err
	}
	if off := time.Since(now); off > want+time.Minute || off < want-time.Minute {
		return fmt.Errorf("the clock is off by %v, want %v", off, want)
	}
	return nil
}
