package pgserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// cluster is a data folder in a temporary folder of our own, and the server
// process that runs on it.
type cluster struct {
	folder   *folder
	binDir   string
	user     account
	password string
	port     int

	mu    sync.Mutex
	cmd   *exec.Cmd     // nil while no server runs
	ended chan struct{} // closed once cmd has ended
}

// startCluster makes a data folder and runs the programs of binDir on it.
func startCluster(ctx context.Context, binDir string, o Options) (*Server, error) {
	user, err := serverAccount()
	if err != nil {
		return nil, err
	}
	place := newFolder
	if o.InMemory {
		place = newFolderInMemory
	}
	f, err := place(user)
	if err != nil {
		return nil, err
	}
	s, err := startClusterIn(ctx, f, user, binDir, o.Settings)
	if err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return s, nil
}

// startClusterIn is startCluster in a folder that exists. The folder is the
// caller's to remove when startClusterIn fails.
func startClusterIn(ctx context.Context, f *folder, user account, binDir string, settings map[string]string) (*Server, error) {
	c := &cluster{folder: f, binDir: binDir, user: user, password: rand.Text()}
	if err := c.init(ctx, settings); err != nil {
		return nil, fmt.Errorf("%s: %w", program(binDir, "initdb"), err)
	}
	// Somebody else may take the free port before the server does.
	var err error
	for range 5 {
		if c.port, err = freePort(); err != nil {
			return nil, err
		}
		if err = c.run(ctx); err == nil || !c.portTaken() {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program(binDir, "postgres"), errors.Join(err, c.kill()))
	}
	return &Server{
		url:     c.url(),
		cluster: c,
		stop:    func() error { return errors.Join(c.kill(), f.remove()) },
	}, nil
}

func (c *cluster) dataDir() string { return filepath.Join(c.folder.path, "data") }
func (c *cluster) logFile() string { return filepath.Join(c.folder.path, "server.log") }

func (c *cluster) url() string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", c.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// init runs initdb and writes the settings.
func (c *cluster) init(ctx context.Context, settings map[string]string) error {
	passwordFile := filepath.Join(c.folder.path, "password")
	if err := os.WriteFile(passwordFile, []byte(c.password+"\n"), 0o600); err != nil {
		return err
	}
	if err := c.user.own(passwordFile); err != nil {
		return err
	}
	// The password keeps other users of the machine out of the superuser's
	// account; sent in the clear over loopback it costs less than SCRAM.
	cmd := exec.CommandContext(ctx, program(c.binDir, "initdb"),
		"--pgdata="+c.dataDir(), "--username=postgres", "--pwfile="+passwordFile,
		"--auth=password", "--encoding=UTF8", "--locale=C", "--no-sync")
	c.prepare(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, lastLines(string(out)))
	}
	if err := os.Remove(passwordFile); err != nil {
		return err
	}

	var conf strings.Builder
	conf.WriteString("\n# Settings of a server for throwing away.\n")
	all := serverSettings(settings)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(all[name], "'", "''"))
	}
	return appendFile(filepath.Join(c.dataDir(), "postgresql.conf"), conf.String())
}

// run starts the server process and waits until it accepts connections.
func (c *cluster) run(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	log, err := os.Create(c.logFile())
	if err != nil {
		return err
	}
	defer log.Close()

	socketDir := c.dataDir()
	if len(socketDir) > 80 {
		socketDir = "" // A socket's path is limited to about 100 bytes.
	}
	cmd := exec.Command(program(c.binDir, "postgres"), "-D", c.dataDir(), "-p", strconv.Itoa(c.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+socketDir)
	c.prepare(cmd)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // How it ended stands in the log.
	}()
	c.cmd, c.ended = cmd, ended

	if err := await(ctx, c.url(), ended); err != nil {
		return fmt.Errorf("%w: %s", err, lastLines(c.log()))
	}
	return nil
}

// kill ends the server at once and waits for it.
func (c *cluster) kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return nil
	}
	err := stopNow(c.cmd.Process, c.ended)
	c.cmd = nil
	return err
}

// prepare makes cmd run as the server's user, in its folder and away from the
// terminal's signals: a Ctrl-C is for the program, which then calls Stop.
func (c *cluster) prepare(cmd *exec.Cmd) {
	cmd.Dir = c.folder.path
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGOPTIONS=", "PGDATA=")
	c.user.apply(cmd)
}

func (c *cluster) log() string {
	b, err := os.ReadFile(c.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// portTaken reports whether the server ended because of its port.
func (c *cluster) portTaken() bool {
	return strings.Contains(c.log(), "could not bind")
}

// stopGrace is how long a server may take to end after an immediate
// shutdown. PostgreSQL itself kills stubborn children after five seconds.
const stopGrace = 15 * time.Second

// stopNow asks for an immediate shutdown and enforces it after a while.
func stopNow(p *os.Process, ended <-chan struct{}) error {
	if err := p.Signal(immediateShutdown); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-timer.C:
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-ended
	return nil
}

// serverSettings returns the settings of a throw-away server with the
// caller's on top.
func serverSettings(own map[string]string) map[string]string {
	all := map[string]string{
		"fsync":                     "off",
		"full_page_writes":          "off",
		"synchronous_commit":        "on",
		"wal_level":                 "minimal",
		"max_wal_senders":           "0",
		"max_wal_size":              "1GB",
		"checkpoint_timeout":        "30min",
		"shared_buffers":            "256MB",
		"max_connections":           "300",
		"max_prepared_transactions": "0",
		"autovacuum":                "on",
	}
	maps.Copy(all, own)
	if all["wal_level"] != "minimal" && own["max_wal_senders"] == "" {
		delete(all, "max_wal_senders")
	}
	return all
}

// freePort returns a port that was free a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

func appendFile(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// lastLines returns the end of a program's output, which is where the reason
// of its failure stands.
func lastLines(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "; ")
}
