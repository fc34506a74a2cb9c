package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) != "" {
		os.Exit(helper())
	}
	goleak.VerifyTestMain(m)
}

// helperVariable makes this test binary a program that starts a server,
// reports it and then waits for the end of its input.
const helperVariable = "PGSERVER_TEST_HELPER"

func helper() int {
	s, err := Start(context.Background(), Options{Provider: os.Getenv(helperVariable)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s.URL())
	if s.cluster != nil {
		fmt.Println(s.cluster.folder.path)
	} else {
		fmt.Println("-")
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := s.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startInstalled starts a server from the programs installed on this machine.
func startInstalled(t *testing.T, settings map[string]string) *Server {
	t.Helper()
	needBinaries(t)
	s, err := Start(t.Context(), Options{Provider: Binaries, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func needBinaries(t *testing.T) {
	t.Helper()
	if os.Getenv(binDirVariable) == "" && len(installedBinDirs()) == 0 {
		t.Skip("no PostgreSQL server programs are installed")
	}
}

// value returns the result of a query for one text.
func value(t *testing.T, s *Server, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var v string
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func execute(t *testing.T, s *Server, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func TestBinaries(t *testing.T) {
	t.Parallel()
	s := startInstalled(t, nil)
	if s.Provider() != Binaries || !s.Controllable() {
		t.Errorf("provider %q, controllable %t", s.Provider(), s.Controllable())
	}
	if got := value(t, s, "SELECT current_user || ' ' || current_database() || ' ' || usesuper FROM pg_user"); got != "postgres postgres true" {
		t.Errorf("connected as %q", got)
	}
	for setting, want := range map[string]string{"fsync": "off", "synchronous_commit": "on", "max_connections": "300", "listen_addresses": "127.0.0.1"} {
		if got := value(t, s, "SHOW "+setting); got != want {
			t.Errorf("%s = %s, want %s", setting, got, want)
		}
	}
	folder := s.cluster.folder.path
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if exists(folder) {
		t.Errorf("%s is still there after Stop", folder)
	}
}

func TestPasswordIsNeeded(t *testing.T) {
	t.Parallel()
	s := startInstalled(t, nil)
	config, err := pgx.ParseConfig(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.Password = "guessed"
	if conn, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		t.Error("the superuser's account is open to everybody on this machine", conn.Close(t.Context()))
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	s := startInstalled(t, map[string]string{"fsync": "on", "wal_level": "replica", "application_name": "it's"})
	for setting, want := range map[string]string{"fsync": "on", "wal_level": "replica", "max_wal_senders": "10"} {
		if got := value(t, s, "SHOW "+setting); got != want {
			t.Errorf("%s = %s, want %s", setting, got, want)
		}
	}
	if got := value(t, s, "SELECT reset_val FROM pg_settings WHERE name = 'application_name'"); got != "it's" {
		t.Errorf("application_name = %s", got)
	}
}

func TestWrongSetting(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	_, err := Start(t.Context(), Options{Provider: Binaries, Settings: map[string]string{"shared_bufers": "1GB"}})
	if err == nil || !strings.Contains(err.Error(), "shared_bufers") {
		t.Errorf("got %v, want the server's own complaint", err)
	}
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	s := startInstalled(t, nil)
	url := s.URL()
	execute(t, s, "CREATE TABLE kept AS SELECT 'kept' AS it")
	for range 2 {
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := ping(t.Context(), url); err == nil {
		t.Error("the server answers after Kill")
	}
	// The second time the server still runs.
	for range 2 {
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := value(t, s, "SELECT it FROM kept"); got != "kept" || s.URL() != url {
			t.Errorf("after Restart: %q at %s", got, s.URL())
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	const n = 4
	var (
		wg      sync.WaitGroup
		servers [n]*Server
		errs    [n]error
	)
	for i := range n {
		wg.Go(func() { servers[i], errs[i] = Start(t.Context(), Options{Provider: Binaries}) })
	}
	wg.Wait()
	urls := make(map[string]bool)
	for i := range n {
		if errs[i] != nil {
			t.Error(errs[i])
			continue
		}
		urls[servers[i].URL()] = true
		if err := servers[i].Stop(); err != nil {
			t.Error(err)
		}
	}
	if len(urls) != n {
		t.Errorf("%d servers had %d URLs", n, len(urls))
	}
}

// withoutProviders changes the environment so that no provider finds a server.
func withoutProviders(t *testing.T) Options {
	t.Helper()
	for _, name := range []string{"DATABASE_URL", providerVariable, binDirVariable, imageVariable, "DOCKER_MACHINE_NAME"} {
		t.Setenv(name, "")
	}
	t.Setenv("PATH", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "docker.sock"))
	return Options{
		installed:  func() []string { return nil },
		repository: "http://127.0.0.1:1",
	}
}

func TestUnavailable(t *testing.T) {
	o := withoutProviders(t)
	user, err := serverAccount()
	if err != nil {
		t.Skip(err)
	}
	tmp := publicDir(t, user)
	t.Setenv("TMPDIR", tmp)
	_, err = Start(t.Context(), o)
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	for _, want := range []string{
		"environment (set DATABASE_URL): DATABASE_URL is not set",
		"binaries (install the PostgreSQL server programs): no postgres and initdb on PATH",
		"docker (run a Docker daemon): no Docker daemon answers",
		"embedded (allow a download from Maven Central): downloading PostgreSQL",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(tmp, folderPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the failed download left %v, %v", left, err)
	}
}

func TestControllableLeavesOutOthers(t *testing.T) {
	o := withoutProviders(t)
	t.Setenv("DATABASE_URL", "postgres://127.0.0.1:1/")
	o.Controllable = true
	_, err := Start(t.Context(), o)
	if !errors.Is(err, ErrUnavailable) || strings.Count(err.Error(), "not asked") != 2 {
		t.Errorf("got %v, want two providers left out", err)
	}
}

// TestExplicitChoiceIsBinding checks that Start does not quietly take another
// server than the one it was told to take.
func TestExplicitChoiceIsBinding(t *testing.T) {
	tests := map[string]struct {
		variable, value string
		want            string
	}{
		"server does not answer": {"DATABASE_URL", "postgres://127.0.0.1:1/db", "DATABASE_URL names does not answer"},
		"not a URL":              {"DATABASE_URL", "postgres://127.0.0.1:x/db", "DATABASE_URL names does not answer"},
		"no programs":            {binDirVariable, os.TempDir(), "holds no postgres and initdb"},
		"unknown provider":       {providerVariable, "podman", `unknown PostgreSQL provider "podman" (SIMPLEQUEUE_TEST_PROVIDER)`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := withoutProviders(t)
			o.installed = nil
			t.Setenv(tt.variable, tt.value)
			s, err := Start(t.Context(), o)
			if err == nil {
				t.Fatal("got a server", s.Provider(), s.Stop())
			}
			if !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	s := startInstalled(t, nil)
	o := withoutProviders(t)
	o.URLVariable = "PGSERVER_TEST_URL"
	t.Setenv(o.URLVariable, s.URL())
	e, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if e.URL() != s.URL() || e.Provider() != Environment || e.Controllable() {
		t.Errorf("got %s from %s", e.URL(), e.Provider())
	}
	if err := e.Kill(); !errors.Is(err, ErrNotControllable) {
		t.Errorf("Kill: %v", err)
	}
	if err := e.Restart(t.Context()); !errors.Is(err, ErrNotControllable) {
		t.Errorf("Restart: %v", err)
	}
	if err := e.Stop(); err != nil {
		t.Error(err)
	}
	if err := ping(t.Context(), s.URL()); err != nil {
		t.Errorf("Stop touched a server from the environment: %v", err)
	}
}

// TestUnreachableTempDir has TMPDIR in a folder that the server's user cannot
// enter, as root's home is.
func TestUnreachableTempDir(t *testing.T) {
	if runtime.GOOS == "windows" || os.Geteuid() != 0 {
		t.Skip("only root starts servers as somebody else")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	s := startInstalled(t, nil)
	if path := s.cluster.folder.path; strings.HasPrefix(path, dir) {
		t.Errorf("the server is in %s", path)
	}
}

func TestDocker(t *testing.T) {
	pool, err := dockerPool(t.Context())
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { closeIdle(pool) })
	if os.Getenv(imageVariable) == "" {
		t.Skipf("%s names no image", imageVariable)
	}
	s, err := Start(t.Context(), Options{Provider: Docker, Settings: map[string]string{"work_mem": "12MB"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Provider() != Docker || s.Controllable() {
		t.Errorf("provider %q, controllable %t", s.Provider(), s.Controllable())
	}
	if got := value(t, s, "SHOW work_mem") + value(t, s, "SHOW fsync"); got != "12MBoff" {
		t.Errorf("the settings are %q", got)
	}
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	if err := ping(t.Context(), s.URL()); err == nil {
		t.Error("the container lives on after Stop")
	}
}

// TestEmbedded downloads, so it runs only when it is asked for.
func TestEmbedded(t *testing.T) {
	if os.Getenv(providerVariable) != Embedded {
		t.Skipf("%s is not %s", providerVariable, Embedded)
	}
	s, err := Start(t.Context(), Options{Controllable: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.Provider() != Embedded {
		t.Errorf("provider %q", s.Provider())
	}
	execute(t, s, "CREATE TABLE kept AS SELECT 'kept' AS it")
	if err := s.Restart(t.Context()); err != nil {
		t.Error(err)
	} else if got := value(t, s, "SELECT it FROM kept"); got != "kept" {
		t.Errorf("after Restart: %q", got)
	}
	folder := s.cluster.folder.path
	if err := s.Stop(); err != nil || exists(folder) {
		t.Errorf("Stop: %v, %s exists: %t", err, folder, exists(folder))
	}
}

func TestSplitImage(t *testing.T) {
	t.Parallel()
	for image, want := range map[string][2]string{
		"postgres":                {"postgres", "latest"},
		"postgres:17":             {"postgres", "17"},
		"host:5000/team/postgres": {"host:5000/team/postgres", "latest"},
		"host:5000/postgres:17":   {"host:5000/postgres", "17"},
	} {
		if repository, tag := splitImage(image); [2]string{repository, tag} != want {
			t.Errorf("splitImage(%q) = %q, %q", image, repository, tag)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for dir, want := range map[string]int{
		"/usr/lib/postgresql/9.6/bin":         9,
		"/usr/lib/postgresql/15/bin":          15,
		"/opt/homebrew/opt/postgresql@17/bin": 17,
		"/opt/homebrew/opt/postgresql/bin":    0,
		"/usr/pgsql-16/bin":                   16,
	} {
		if got := version(dir); got != want {
			t.Errorf("version(%q) = %d, want %d", dir, got, want)
		}
	}
}

func TestLastLines(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	for i := range 20 {
		fmt.Fprintf(&log, "line %d\n", i)
	}
	if got := lastLines(log.String()); !strings.HasPrefix(got, "line 12; ") || !strings.HasSuffix(got, "; line 19") {
		t.Errorf("got %q", got)
	}
}

// publicDir returns a folder that the account can reach.
func publicDir(t *testing.T, as account) string {
	t.Helper()
	parent, err := tempDir(as)
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp(parent, "pgserver-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
