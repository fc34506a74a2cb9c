package main

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// config is what the flags say.
type config struct {
	contestants, scenarios []string
	repeats                int

	jobs, call, batch, ahead      int
	seconds, rate                 float64
	backlog, scheduled, history   int
	queues, longJobs              int
	orderKeys, uniqueKeys         int
	backlogSeconds, pinnedSeconds float64
	recoverSeconds, longSeconds   float64
	statements                    bool
	url, json, profiles           string
	charts, from, check           string
	server                        map[string]string // settings of our own server
}

// parse reads the flags and checks them.
func parse() (config, error) {
	c := config{server: map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
		"shared_buffers": "1GB", "wal_level": "replica", "max_wal_size": "8GB",
		"max_connections": "200", // eight worker processes have engines with connections of their own
	}}
	flag.Func("contestants", "who runs (default all)", names(&c.contestants, slices.Sorted(maps.Keys(contestants))))
	flag.Func("scenarios", "what they do (default all)", names(&c.scenarios, scenarioNames()))
	flag.IntVar(&c.repeats, "repeats", 3, "runs of each contestant in each scenario")
	flag.Float64Var(&c.seconds, "seconds", 20, "length of what is measured, where the time is given")
	flag.IntVar(&c.jobs, "jobs", 200_000, "jobs a run, where their number is given; a tenth of payload-4k's, a hundredth of payload-64k's")
	flag.IntVar(&c.call, "call", 10_000, "jobs in one call of a bulk insert")
	flag.IntVar(&c.batch, "batch", 1000, "jobs in one call of a producer beside workers")
	flag.IntVar(&c.ahead, "ahead", 50_000, "jobs that producers stay ahead of the workers at most")
	flag.Float64Var(&c.rate, "rate", 0, "jobs/s of latency-load and late (default half of River's steady rate, measured first)")
	flag.IntVar(&c.backlog, "backlog", 2_000_000, "backlog: jobs")
	flag.Float64Var(&c.backlogSeconds, "backlog-seconds", 15, "backlog: length of what is measured")
	flag.Float64Var(&c.pinnedSeconds, "pinned-seconds", 120, "pinned, pinned-plain, dump: length of what is measured")
	flag.Float64Var(&c.recoverSeconds, "recover-seconds", 60, "dump: how long space may take to come back")
	flag.IntVar(&c.scheduled, "scheduled", 1_000_000, "scheduled: jobs due in the future")
	flag.IntVar(&c.history, "history", 10_000_000, "history: finished jobs")
	flag.IntVar(&c.queues, "queues", 1000, "queues: queues that are served, a tenth of them busy")
	flag.IntVar(&c.longJobs, "long-jobs", 500, "long: jobs that run at once")
	flag.Float64Var(&c.longSeconds, "long-seconds", 60, "long: how long each runs")
	flag.IntVar(&c.orderKeys, "order-keys", 100_000, "ordered: order keys")
	flag.IntVar(&c.uniqueKeys, "unique-keys", 100_000, "unique: keys that are held all the time")
	flag.StringVar(&c.url, "url", "", "a server to use; superuser. Default: one of our own")
	flag.StringVar(&c.json, "json", "", "file to append the results to, a line a run")
	flag.StringVar(&c.from, "from", "", "file of results to make tables and charts of, without running anything")
	flag.StringVar(&c.charts, "charts", "", "folder for charts, SVG")
	flag.StringVar(&c.check, "check", "", "file of results whose form is checked, without running anything; also that none of -contestants in -scenarios is missing")
	flag.StringVar(&c.profiles, "profiles", "", "folder for CPU profiles of the measured part of each run")
	flag.BoolVar(&c.statements, "statements", false, "report the server's time by statement (pg_stat_statements)")
	flag.Func("server", "name=value, a setting of our own server; may be repeated", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q is not name=value", text)
		}
		c.server[name] = value
		return nil
	})
	flag.Parse()
	return c, c.complete()
}

// names reads a list of known names.
func names(list *[]string, known []string) func(string) error {
	*list = known
	return func(text string) error {
		*list = strings.Split(text, ",")
		for _, name := range *list {
			if !slices.Contains(known, name) {
				return fmt.Errorf("%q is none of %s", name, strings.Join(known, ", "))
			}
		}
		return nil
	}
}

// complete checks the flags and adds what follows from them.
func (c *config) complete() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: everything is a flag", flag.Arg(0))
	}
	for name, n := range map[string]int{
		"repeats": c.repeats, "jobs": c.jobs, "call": c.call, "batch": c.batch, "ahead": c.ahead, "backlog": c.backlog,
		"scheduled": c.scheduled, "history": c.history, "queues": c.queues, "long-jobs": c.longJobs,
		"order-keys": c.orderKeys, "unique-keys": c.uniqueKeys,
	} {
		if n < 1 {
			return fmt.Errorf("-%s must be at least 1, not %d", name, n)
		}
	}
	for name, n := range map[string]float64{
		"seconds": c.seconds, "backlog-seconds": c.backlogSeconds, "pinned-seconds": c.pinnedSeconds, "long-seconds": c.longSeconds,
	} {
		if n <= 0 {
			return fmt.Errorf("-%s must be more than 0, not %v", name, n)
		}
	}
	if c.rate < 0 || c.recoverSeconds < 0 {
		return errors.New("-rate and -recover-seconds must not be negative")
	}
	c.scenarios = withBaselines(c.scenarios)
	counted := c.statements
	for _, name := range c.scenarios {
		s, _ := findScenario(name)
		counted = counted || s.counts
	}
	if counted && c.url == "" {
		// What is loaded and not asked for only costs memory.
		c.server["shared_preload_libraries"] = "pg_stat_statements"
		c.server["pg_stat_statements.track"] = "none"
	}
	return nil
}

// withBaselines adds, ahead of the first that needs it, what a scenario is
// compared with.
func withBaselines(scenarios []string) []string {
	var all []string
	for _, name := range scenarios {
		s, _ := findScenario(name)
		if s.baseline != "" && !slices.Contains(scenarios, s.baseline) && !slices.Contains(all, s.baseline) {
			all = append(all, s.baseline)
		}
		all = append(all, name)
	}
	return all
}
