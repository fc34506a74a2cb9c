// Bench runs simplequeue and its peers on one PostgreSQL server, one after
// another in turns, and compares them. Every run has a fresh database and checks
// that each job ran exactly once.
//
//	go run . -contestants simplequeue,river,floor -scenarios drain,insert -jobs 200000 -repeats 3 -json results.jsonl
//
// Without -url it starts a server of its own with a production server's
// durability. Each run is a line of JSON; the table at the end holds the medians.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// config is what the flags say.
type config struct {
	contestants, scenarios []string
	jobs, call, repeats    int
	url, json, profiles    string
	statements             bool
	server                 map[string]string
}

func parse() (config, error) {
	c := config{server: map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
		"shared_buffers": "1GB", "wal_level": "replica", "max_wal_size": "8GB",
	}}
	names := func(list *[]string, known []string) func(string) error {
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
	flag.Func("contestants", "who runs (default all)", names(&c.contestants, slices.Sorted(maps.Keys(contestants))))
	flag.Func("scenarios", "what they do (default all)", names(&c.scenarios, slices.Sorted(maps.Keys(scenarios))))
	flag.IntVar(&c.jobs, "jobs", 200_000, "jobs a run")
	flag.IntVar(&c.call, "call", 10_000, "jobs a bulk insert call")
	flag.IntVar(&c.repeats, "repeats", 3, "runs of each contestant in each scenario")
	flag.StringVar(&c.url, "url", "", "a server to use; superuser. Default: one of our own")
	flag.StringVar(&c.json, "json", "", "file to append the results to, a line a run")
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
	if c.jobs < 1 || c.call < 1 || c.repeats < 1 || flag.NArg() > 0 {
		return c, errors.New("-jobs, -call and -repeats must be at least 1, and there are no other arguments")
	}
	if c.statements {
		c.server["shared_preload_libraries"] = "pg_stat_statements"
	}
	return c, nil
}

func run(ctx context.Context) (err error) {
	c, err := parse()
	if err != nil {
		return err
	}
	url := c.url
	if url == "" {
		server, err := pgserver.Start(ctx, pgserver.Options{Settings: c.server, Controllable: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		url = server.URL()
	}
	admin, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer admin.Close()

	r := &runner{config: c, admin: admin, url: url, own: c.url == ""}
	report, err := newReport(c.json)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, report.close()) }()
	for _, scenario := range c.scenarios {
		for i := range c.repeats {
			for j := range c.contestants {
				contestant := c.contestants[(i+j)%len(c.contestants)] // nobody always comes first
				runtime.GC()
				result, err := r.run(ctx, contestant, scenario)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", contestant, scenario, err)
				}
				if err := report.add(result); err != nil {
					return err
				}
			}
		}
	}
	return report.table(os.Stdout)
}
