// Thumbnails makes a thumbnail of every PNG, JPEG and GIF image below a folder,
// one job an image, and at the end a contact sheet of them all.
//
//	go run ./examples/thumbnails [-out FOLDER] [-workers N] [-memory BYTES] [FOLDER]
//
// Without FOLDER it takes the test images of the Go toolchain, among which are
// broken ones. The tables are in the database that DATABASE_URL names, or in
// that of a temporary server of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)           // the second Ctrl-C ends the program at once
	slog.SetLogLoggerLevel(slog.LevelWarn) // the terminal is the progress bar's
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "thumbnails:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	c, err := parse(args, stdout)
	if err != nil || c == nil {
		return err
	}
	if c.folder == "" {
		if c.folder, err = toolchainImages(ctx); err != nil {
			return err
		}
	}
	if err := c.check(); err != nil {
		return err
	}
	pictures, err := hashed(ctx, c, stdout)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Found %s below %s\n", count(len(pictures), "image"), c.folder)
	if len(pictures) == 0 {
		return nil
	}

	server, err := pgserver.Start(ctx, pgserver.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	temporary := server.Provider() != pgserver.Environment
	if temporary {
		fmt.Fprintln(stdout, "Started a PostgreSQL for this run only; set DATABASE_URL to one that stays, and the next run goes on from there")
	}
	pool, err := pgxpool.New(ctx, server.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrate.UpPool(ctx, pool, "simplequeue"); err != nil {
		return err
	}

	q, err := newQueue(pool, c)
	if err != nil {
		return err
	}
	inserted, err := insertJobs(ctx, pool, q, c, pictures)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, inserted)
	if err := work(ctx, q, inserted.sheet, newProgress(stdout)); err != nil {
		return interrupted(ctx, temporary, err)
	}
	return report(ctx, pool, c, inserted.sheet, temporary, stdout)
}

func newQueue(pool *pgxpool.Pool, c *config) (*simplequeue.SimpleQueue, error) {
	return simplequeue.New(pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{
			boundMemory(thumbnailHandler(), c.memory),
			sheetHandler(),
		},
		Queues: map[string]simplequeue.QueueOptions{thumbnails: {Permits: c.workers}},
		// The contact sheet looks again and again whether its thumbnails are
		// done, for as long as they take.
		MaxReschedules: -1,
	})
}

// interrupted says what an end by Ctrl-C means. Other errors it leaves alone.
func interrupted(ctx context.Context, temporary bool, err error) error {
	switch {
	case ctx.Err() == nil:
		return err
	case temporary:
		return errors.New("interrupted; thumbnails already made stay, the database with the jobs is removed")
	}
	return errors.New("interrupted; the jobs left are in the database, the next run goes on with them")
}
