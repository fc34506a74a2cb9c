// Chaos breaks what simplequeue runs on, and verifies the whole history of every
// run: no fault may lose a job, strand one, finish one twice, leak a permit or
// exceed a limit.
//
//	go run . -scenario kill9,pgrestart -seconds 10 -seed 7 -workers 3 -json results.jsonl
//
// It starts its own PostgreSQL servers, a proxy for each process, worker
// processes and a producer (the program executes itself), injects faults by a
// schedule that follows from the seed, stops them, waits for quiet, and checks.
// Each scenario is a line of JSON. A violation makes the exit status 1 and is
// printed with the seed and the events of its job. docs/reliability.md says what
// is promised and how each scenario tests it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgserver"
)

// config is what the flags say.
type config struct {
	scenarios []string
	seconds   time.Duration
	seed      uint64
	workers   int
	json      string
	keepLogs  string
}

func main() {
	if text := os.Getenv(setupVariable); text != "" {
		var s setup
		err := json.Unmarshal([]byte(text), &s)
		if err == nil {
			err = processMain(s)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(3)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func parse(args []string) (config, error) {
	c := config{scenarios: scenarioNames()}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Func("scenario", "names separated by commas, or all (default all):\n"+describeScenarios(), func(text string) error {
		if text == "all" {
			return nil
		}
		c.scenarios = strings.Split(text, ",")
		for _, name := range c.scenarios {
			if findScenario(name) == nil {
				return fmt.Errorf("%q is none of %s", name, strings.Join(scenarioNames(), ", "))
			}
		}
		return nil
	})
	seconds := flags.Float64("seconds", 10, "how long each scenario makes faults")
	flags.Uint64Var(&c.seed, "seed", 0, "of all chance (default: a new one, printed)")
	flags.IntVar(&c.workers, "workers", 3, "worker processes")
	flags.StringVar(&c.json, "json", "", "file to append the results to")
	flags.StringVar(&c.keepLogs, "logs", "", "folder for the logs of the processes of runs with violations")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	c.seconds = time.Duration(*seconds * float64(time.Second))
	for c.seed == 0 {
		c.seed = rand.Uint64N(1 << 32)
	}
	if c.workers < 1 || c.seconds <= 0 || flags.NArg() > 0 {
		return c, errors.New("-workers and -seconds must be positive, and there are no other arguments")
	}
	return c, nil
}

func describeScenarios() string {
	var b strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&b, "  %-16s %s\n", s.name, s.about)
	}
	return b.String()
}

// run runs the scenarios that are asked for, one after the other.
func run(ctx context.Context, args []string) (err error) {
	c, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	start := func(settings map[string]string) (*pgserver.Server, error) {
		return pgserver.Start(ctx, pgserver.Options{Controllable: true, Settings: settings})
	}
	witnesses, err := start(map[string]string{"synchronous_commit": "off", "shared_buffers": "64MB"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, witnesses.Stop()) }()
	main, err := start(serverSettings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, main.Stop()) }()
	var bad, notRun []string
	for _, name := range c.scenarios {
		r, err := runScenario(ctx, c, findScenario(name), main, witnesses)
		if err != nil {
			return fmt.Errorf("%s, seed %d: %w", name, c.seed, err)
		}
		if r.Violations > 0 {
			bad = append(bad, name)
		}
		if r.NotRun != "" {
			notRun = append(notRun, name)
		}
	}
	if notRun != nil {
		fmt.Fprintf(os.Stderr, "chaos: not run here: %s\n", strings.Join(notRun, ", "))
	}
	if bad != nil {
		return fmt.Errorf("seed %d: violations in %s", c.seed, strings.Join(slices.Compact(bad), ", "))
	}
	return nil
}

// serverSettings are those of a server under test: one that can have standbys.
var serverSettings = map[string]string{
	"wal_level": "replica", "max_wal_senders": "8", "hot_standby": "on", "shared_buffers": "64MB", "wal_keep_size": "256MB",
}

// runScenario runs one scenario and writes its result.
func runScenario(ctx context.Context, c config, sc *scenario, main, witnesses *pgserver.Server) (r result, err error) {
	r = result{Scenario: sc.name, Seed: c.seed}
	if sc.missing != nil {
		if r.NotRun = sc.missing(); r.NotRun != "" {
			return r, r.write(os.Stdout, c.json)
		}
	}
	s, err := newStage(ctx, c, sc, c.seed, main, witnesses)
	var why notHere
	if errors.As(err, &why) {
		r.NotRun = why.Error()
		return r, r.write(os.Stdout, c.json)
	}
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	h, found, err := s.perform(ctx)
	if err != nil {
		return r, err
	}
	found = append(found, verify(h)...)
	r = resultOf(sc, c.seed, h, found)
	if err := r.write(os.Stdout, c.json); err != nil || len(found) == 0 {
		return r, err
	}
	tell(os.Stderr, c, r, found)
	for _, l := range h.lives {
		if l.unexpected {
			fmt.Fprintf(os.Stderr, "the log of %s ends:\n%s\n", l.process, s.lastLines(l.process))
		}
	}
	if c.keepLogs != "" {
		return r, os.CopyFS(fmt.Sprintf("%s/%s-%d", c.keepLogs, sc.name, c.seed), os.DirFS(s.logs))
	}
	return r, nil
}
