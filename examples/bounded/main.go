// Bounded puts a queue with a limit behind an HTTP handler: a request that finds
// it full is answered 503 with Retry-After, so that the backlog, and with it the
// time a job waits, stays bounded, and whoever asks knows it at once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bounded:", err)
		os.Exit(1)
	}
}

const limit = 3

// render is the sort of job that a request makes.
var render = simplequeue.Template[string]{Defaults: simplequeue.NewJob{Queue: "renders", Kind: "page"}}

// accept inserts a job for each request, or says that there is no room.
func accept(q *simplequeue.SimpleQueue) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
		if err != nil {
			http.Error(w, "the name of a page has at most 1 kB", http.StatusRequestEntityTooLarge)
			return
		}
		job, err := render.Insert(r.Context(), q, string(page))
		var full *simplequeue.QueueFullError
		switch {
		case errors.As(err, &full):
			w.Header().Set("Retry-After", "5")
			http.Error(w, fmt.Sprintf("%d pages are being rendered, try again later", full.Limit), http.StatusServiceUnavailable)
		case err != nil:
			http.Error(w, "cannot take the page now", http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprintln(w, job.ID)
		}
	})
}

func run(ctx context.Context, stdout io.Writer) (err error) {
	// The server that DATABASE_URL names, or one of our own for this run.
	server, err := pgserver.Start(ctx, pgserver.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	pool, err := pgxpool.New(ctx, server.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrate.UpPool(ctx, pool, "simplequeue"); err != nil {
		return err
	}

	rendered := make(chan string)
	q, err := simplequeue.New(pool, simplequeue.Options{Handlers: []simplequeue.Handler{
		render.Handler(func(ctx context.Context, _ *simplequeue.Job, page string) error {
			select {
			case rendered <- page: // which somebody waits for
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}),
	}})
	if err != nil {
		return err
	}
	// Once, from any program: it holds for all of them.
	if err := q.SetQueueLimit(ctx, "renders", limit); err != nil {
		return err
	}

	site := httptest.NewServer(accept(q)) // a program of yours listens on a port
	defer site.Close()
	for i := range limit + 2 {
		if err := post(ctx, stdout, site, fmt.Sprintf("page %d", i+1)); err != nil {
			return err
		}
	}

	fmt.Fprintln(stdout, "now a worker starts")
	working, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- q.Run(working) }()
	for range limit {
		select {
		case <-rendered:
		case err := <-done:
			stop()
			return err
		}
	}
	stop() // Run writes what the jobs have become
	if err := <-done; err != nil {
		return err
	}
	return post(ctx, stdout, site, "page 6")
}

// post asks for a page and prints the answer.
func post(ctx context.Context, stdout io.Writer, site *httptest.Server, page string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, site.URL, strings.NewReader(page))
	if err != nil {
		return err
	}
	answer, err := site.Client().Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	fmt.Fprintf(stdout, "%s: %s", page, answer.Status)
	if after := answer.Header.Get("Retry-After"); after != "" {
		fmt.Fprintf(stdout, ", retry after %s s", after)
	}
	fmt.Fprintln(stdout)
	return nil
}
