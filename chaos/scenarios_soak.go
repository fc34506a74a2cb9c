package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

func init() {
	addScenario(scenario{
		name: "soak", order: 21, about: "a fault of any kind every 20 s: for runs of many minutes, in which nothing may grow", inject: injectAny,
	})
	addScenario(scenario{
		name: "connections", order: 16, about: "300 idle connections are open beside those of workers",
		server: ownServer(map[string]string{"max_connections": "400"}), prepare: openConnections, inject: injectTerminations,
	})
}

// injectAny makes one fault that no worker dies of.
func injectAny(ctx context.Context, s *stage) error {
	if !pause(ctx, min(20*time.Second, s.config.seconds/3)) {
		return nil
	}
	faults := []func(context.Context, *stage) error{
		injectTerminations, injectRestart, injectStops, injectBlackhole(anyPurpose), injectLatency, injectResets, injectLocks,
	}
	return faults[s.rand.IntN(len(faults))](ctx, s)
}

// openConnections opens connections that nobody terminates and nobody uses.
func openConnections(ctx context.Context, s *stage) error {
	config, err := pgx.ParseConfig(s.url)
	if err != nil {
		return err
	}
	config.RuntimeParams["application_name"] = "chaos"
	for range 300 {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return err
		}
		s.cleanup(func() error { return conn.Close(context.WithoutCancel(ctx)) })
	}
	return nil
}
