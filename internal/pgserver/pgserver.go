package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// The names of the providers, as [Server.Provider] returns them and as
// [Options.Provider] takes them.
const (
	Environment = "environment"
	Binaries    = "binaries"
	Docker      = "docker"
	Embedded    = "embedded"
)

// Environment variables that stand in for empty fields of [Options].
const (
	providerVariable = "SIMPLEQUEUE_TEST_PROVIDER"
	binDirVariable   = "SIMPLEQUEUE_TEST_PG_BINDIR"
	imageVariable    = "SIMPLEQUEUE_TEST_DOCKER_IMAGE"
)

// ErrUnavailable is wrapped by the error of [Start] when no provider had a
// server to offer.
var ErrUnavailable = errors.New("no PostgreSQL server is available")

// ErrNotControllable is returned by [Server.Kill] and [Server.Restart] for a
// server whose process belongs to somebody else.
var ErrNotControllable = errors.New("the server's process is not ours to stop")

// Options says what server [Start] looks for. The zero value is what an
// example program needs.
type Options struct {
	// URLVariable is the environment variable that names an existing server.
	// Default: DATABASE_URL.
	URLVariable string

	// Provider forces one provider. Default: the value of
	// SIMPLEQUEUE_TEST_PROVIDER, and if that is empty, all four in order.
	Provider string

	// BinDir is the folder with the programs postgres and initdb. Default: the
	// value of SIMPLEQUEUE_TEST_PG_BINDIR, and if that is empty, Start looks
	// on PATH, asks pg_config and goes through the usual install folders.
	BinDir string

	// Image is the Docker image. Default: the value of
	// SIMPLEQUEUE_TEST_DOCKER_IMAGE, and if that is empty, postgres:17.
	Image string

	// Settings are PostgreSQL settings (postgresql.conf) on top of the ones
	// for throw-away servers; a value here wins. A server from the environment
	// keeps its own settings.
	Settings map[string]string

	// Controllable asks for a server that can be killed and restarted, which
	// leaves out the providers "environment" and "docker".
	Controllable bool

	// InMemory keeps the files of installed programs' servers in memory where the
	// system has a file system for that with 4 GiB to spare: databases are made
	// in a tenth of the time.
	InMemory bool

	installed  func() []string // where to look for server programs; default installedBinDirs
	repository string          // where embedded-postgres downloads; default Maven Central
}

// Server is a running PostgreSQL server.
type Server struct {
	url      string
	provider string
	cluster  *cluster     // providers "binaries" and "embedded"
	stop     func() error // removes everything that Start made
}

// Start returns a server that accepts connections. It fails with an error
// that wraps [ErrUnavailable] and lists the reason of every provider when none
// has one. A URL in the environment is binding: Start does not fall back when
// the server it names does not answer.
//
// ctx bounds the starting only; the server runs until [Server.Stop].
func Start(ctx context.Context, o Options) (*Server, error) {
	o.URLVariable = cmp.Or(o.URLVariable, "DATABASE_URL")
	o.Provider = cmp.Or(o.Provider, os.Getenv(providerVariable))
	o.BinDir = cmp.Or(o.BinDir, os.Getenv(binDirVariable))
	o.Image = cmp.Or(o.Image, os.Getenv(imageVariable), "postgres:17")
	if o.installed == nil {
		o.installed = installedBinDirs
	}
	providers, err := o.providers()
	if err != nil {
		return nil, err
	}

	sweep(ctx)

	var reasons []string
	for _, p := range providers {
		if o.Controllable && !p.controllable {
			reasons = append(reasons, fmt.Sprintf("%s: not asked, its server cannot be killed and restarted", p.title(o)))
			continue
		}
		s, err := p.start(ctx, o)
		if err == nil {
			s.provider = p.name
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("starting PostgreSQL: %w", context.Cause(ctx))
		}
		var final *bindingError
		if errors.As(err, &final) {
			return nil, err
		}
		reasons = append(reasons, p.title(o)+": "+err.Error())
	}
	return nil, fmt.Errorf("%w; any one of these would do:\n  - %s", ErrUnavailable, strings.Join(reasons, "\n  - "))
}

// URL returns the connection URL of the superuser for the database postgres,
// or, for the provider "environment", the URL as it was given.
func (s *Server) URL() string { return s.url }

// Provider returns where the server came from: "environment", "binaries",
// "docker" or "embedded".
func (s *Server) Provider() string { return s.provider }

// Controllable reports whether [Server.Kill] and [Server.Restart] work.
func (s *Server) Controllable() bool { return s.cluster != nil }

// Stop ends the server and removes everything that [Start] made, however many
// times it is called. It leaves a server from the environment alone.
func (s *Server) Stop() error {
	if s.stop == nil {
		return nil
	}
	if err := s.stop(); err != nil {
		return fmt.Errorf("stopping PostgreSQL: %w", err)
	}
	return nil
}

// Kill ends the server at once, as a crash would: no checkpoint, connections
// cut. The data folder stays for [Server.Restart].
func (s *Server) Kill() error {
	if s.cluster == nil {
		return ErrNotControllable
	}
	if err := s.cluster.kill(); err != nil {
		return fmt.Errorf("killing PostgreSQL: %w", err)
	}
	return nil
}

// Restart starts the server again on the same port and data folder, after
// killing it if it still runs, and returns once it accepts connections.
func (s *Server) Restart(ctx context.Context) error {
	if s.cluster == nil {
		return ErrNotControllable
	}
	if err := s.Kill(); err != nil {
		return err
	}
	if err := s.cluster.run(ctx); err != nil {
		return fmt.Errorf("restarting PostgreSQL: %w", err)
	}
	return nil
}

// provider is one way to get a server.
type provider struct {
	name         string
	hint         func(Options) string // how a user makes it available
	controllable bool
	start        func(context.Context, Options) (*Server, error)
}

func (p provider) title(o Options) string { return p.name + " (" + p.hint(o) + ")" }

func (o Options) providers() ([]provider, error) {
	all := []provider{
		{Environment, func(o Options) string { return "set " + o.URLVariable }, false, startEnvironment},
		{Binaries, func(Options) string { return "install the PostgreSQL server programs" }, true, startBinaries},
		{Docker, func(Options) string { return "run a Docker daemon" }, false, startDocker},
		{Embedded, func(Options) string { return "allow a download from Maven Central" }, true, startEmbedded},
	}
	if o.Provider == "" {
		return all, nil
	}
	for _, p := range all {
		if p.name == o.Provider {
			return []provider{p}, nil
		}
	}
	return nil, fmt.Errorf("unknown PostgreSQL provider %q (%s): use environment, binaries, docker or embedded", o.Provider, providerVariable)
}

// bindingError is a failure of something the user asked for by name, after
// which trying the next provider would hide the mistake.
type bindingError struct{ error }

func (e *bindingError) Unwrap() error { return e.error }

// startLimit is how long a started server may take until it accepts
// connections. Crash recovery on a slow disk is the longest part.
const startLimit = 90 * time.Second
