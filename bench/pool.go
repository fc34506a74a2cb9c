package main

import (
	"context"
	"runtime/debug"

	"github.com/jackc/pgx/v5/pgxpool"
)

// openPool opens a contestant's pool, with settings for its sessions. All have
// the same size.
func openPool(ctx context.Context, s Setup, session map[string]string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(s.URL)
	if err != nil {
		return nil, err
	}
	for name, value := range session {
		config.ConnConfig.RuntimeParams[name] = value
	}
	config.MaxConns = int32(s.Conns)
	return pgxpool.NewWithConfig(ctx, config)
}

// moduleVersion is the version of a module that this program is built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path != path {
			continue
		}
		if m.Replace != nil {
			return "this checkout"
		}
		return m.Version
	}
	return "unknown"
}
