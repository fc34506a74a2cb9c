package main

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgserver"
)

func init() {
	addScenario(scenario{
		name: "failover", order: 14, about: "the primary is stopped and its synchronous standby promoted", server: ownServer(nil),
		prepare: prepareStandby(true), inject: injectFailover,
	})
	addScenario(scenario{
		name: "failover-async", order: 14, about: "the primary is stopped and a standby promoted that lacks the last seconds", server: ownServer(nil),
		prepare: prepareStandby(false), inject: injectFailover, workloads: []string{"lasting"},
	})
	addScenario(scenario{
		name: "restore", order: 15, about: "the server is lost and a base backup made under load takes its place", server: ownServer(nil),
		prepare: prepareRestore, inject: injectRestore, workloads: []string{"lasting"},
	})
}

// ownServer starts a server that the scenario may lose, with settings of its own.
func ownServer(settings map[string]string) func(context.Context, *stage) error {
	all := maps.Clone(serverSettings)
	maps.Copy(all, settings)
	return func(ctx context.Context, s *stage) error {
		server, err := pgserver.Start(ctx, pgserver.Options{Controllable: true, Settings: all})
		if err != nil {
			return err
		}
		s.server = server
		s.cleanup(server.Stop)
		return nil
	}
}

// standby is what a failover scenario keeps between its steps.
type standby struct {
	server *copied
	link   *proxy // from the standby to the primary
	sync   bool
	done   bool
}

func prepareStandby(sync bool) func(context.Context, *stage) error {
	return func(ctx context.Context, s *stage) error {
		link, err := newProxy(s.target)
		if err != nil {
			return err
		}
		s.cleanup(func() error { link.close(); return nil })
		source, err := url.Parse(s.server.URL())
		if err != nil {
			return err
		}
		source.Host = link.addr()
		c, err := s.newCopy(ctx, source.String(), true)
		if err != nil {
			return err
		}
		if err := c.backUp(ctx); err != nil {
			return err
		}
		if err := c.run(ctx); err != nil {
			return err
		}
		if sync {
			for _, statement := range []string{"ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"} {
				if _, err := s.db.Exec(ctx, statement); err != nil {
					return err
				}
			}
			if !eventually(ctx, 20*time.Second, func() bool {
				var state string
				return s.db.QueryRow(ctx, "SELECT sync_state FROM pg_stat_replication").Scan(&state) == nil && state == "sync"
			}) {
				return errors.New("the standby did not become synchronous")
			}
		}
		s.standby = &standby{server: c, link: link, sync: sync}
		return s.useBoth(ctx, c)
	}
}

// useBoth gives the processes, and the stage itself, a URL of both servers. They
// take whichever is no standby.
func (s *stage) useBoth(ctx context.Context, c *copied) error {
	u, err := url.Parse(s.url)
	if err != nil {
		return err
	}
	u.Host += "," + c.address()
	u.RawQuery += "&target_session_attrs=read-write"
	s.url, s.target = u.String(), ""
	return s.connect(ctx)
}

func injectFailover(ctx context.Context, s *stage) error {
	b := s.standby
	if b.done {
		<-ctx.Done()
		return nil
	}
	b.done = true
	pause(ctx, s.config.seconds/3)
	end := s.outage("failover")
	defer end()
	whole := context.WithoutCancel(ctx)
	begin := time.Now()
	if !b.sync {
		if err := s.caughtUp(whole); err != nil {
			return err
		}
		// What commits from now on the standby never sees.
		b.link.set(trouble{swallow: true})
		pause(whole, s.between(time.Second, 3*time.Second))
	}
	if err := s.server.Kill(); err != nil {
		return err
	}
	if !b.sync {
		s.mu.Lock()
		s.rewind = &span{what: "failover", begin: begin, end: time.Now()}
		s.mu.Unlock()
	}
	pause(whole, s.between(0, time.Second))
	b.link.set(trouble{refuse: true})
	return b.server.exec(whole, "SELECT pg_promote()")
}

// caughtUp waits until the standby has all that is committed now.
func (s *stage) caughtUp(ctx context.Context) error {
	var here string
	if err := s.db.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&here); err != nil {
		return err
	}
	if !eventually(ctx, 20*time.Second, func() bool {
		var there bool
		err := s.db.QueryRow(ctx, "SELECT flush_lsn >= $1::pg_lsn FROM pg_stat_replication", here).Scan(&there)
		return err == nil && there
	}) {
		return errors.New("the standby does not catch up")
	}
	return nil
}

func prepareRestore(ctx context.Context, s *stage) error {
	// The address of the server to come must be in the URL from the start.
	c, err := s.newCopy(ctx, s.server.URL(), false)
	if err != nil {
		return err
	}
	s.standby = &standby{server: c}
	return s.useBoth(ctx, c)
}

func injectRestore(ctx context.Context, s *stage) error {
	b := s.standby
	if b.done {
		<-ctx.Done()
		return nil
	}
	b.done = true
	whole := context.WithoutCancel(ctx)
	pause(ctx, s.config.seconds/3)
	begin := time.Now() // the backup holds all that is committed now, and some of what follows
	if err := b.server.backUp(whole); err != nil {
		return err
	}
	pause(whole, s.between(time.Second, 3*time.Second))
	end := s.outage("restore")
	defer end()
	if err := s.server.Kill(); err != nil {
		return err
	}
	s.mu.Lock()
	s.rewind = &span{what: "restore", begin: begin, end: time.Now()}
	s.mu.Unlock()
	return b.server.run(whole)
}
