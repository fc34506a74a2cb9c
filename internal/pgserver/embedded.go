package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// startEmbedded downloads server programs, which embedded-postgres keeps in
// the user's home for the next time, and runs them like installed ones.
func startEmbedded(ctx context.Context, o Options) (*Server, error) {
	user, err := serverAccount()
	if err != nil {
		return nil, err
	}
	f, err := newFolder(user)
	if err != nil {
		return nil, err
	}
	programs := filepath.Join(f.path, "programs")
	if err := fetch(f, programs, o.repository); err != nil {
		return nil, errors.Join(err, f.remove())
	}
	s, err := startClusterIn(ctx, f, user, filepath.Join(programs, "bin"), o.Settings)
	if err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return s, nil
}

// fetch makes embedded-postgres download and unpack the programs into dir.
// Its Start goes on to run a server, which it cannot do for root and not with
// our settings; that server ends here again, and its failure does not matter
// when the programs are there.
func fetch(f *folder, dir, repository string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	config := embeddedpostgres.DefaultConfig().
		Version(embeddedpostgres.V17).
		Port(uint32(port)).
		RuntimePath(filepath.Join(f.path, "fetch")).
		BinariesPath(dir).
		Logger(io.Discard)
	if repository != "" {
		config = config.BinaryRepositoryURL(repository)
	}
	defer removeLogs()
	defer http.DefaultClient.CloseIdleConnections() // The library downloads with it.
	database := embeddedpostgres.NewDatabase(config)
	err = database.Start()
	if err == nil {
		err = database.Stop()
	}
	if hasServer(filepath.Join(dir, "bin")) {
		return nil
	}
	if err == nil {
		err = errors.New("the downloaded archive holds no postgres and initdb")
	}
	return fmt.Errorf("downloading PostgreSQL: %w", err)
}

// removeLogs deletes the log files that embedded-postgres leaves behind in the
// folder for temporary files. It keeps them open and tells nobody their names,
// so only Linux finds them among the open files of this process.
func removeLogs() {
	const openFiles = "/proc/self/fd"
	entries, err := os.ReadDir(openFiles)
	if err != nil {
		return
	}
	for _, entry := range entries {
		name, err := os.Readlink(filepath.Join(openFiles, entry.Name()))
		if err == nil && strings.HasPrefix(filepath.Base(name), "embedded_postgres_log") {
			_ = os.Remove(name)
		}
	}
}
