// Requestreply answers HTTP requests by way of a queue: the site inserts a job and
// waits for its result, which a worker makes that could as well be a program on
// another machine. A request that is given up cancels its job, and what the
// worker refuses is the caller's mistake. Nothing is kept of the jobs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "requestreply:", err)
		os.Exit(1)
	}
}

// Answer is what the worker finds out about a text.
type Answer struct {
	Words, Letters int
}

// count is the sort of job that a request makes.
var count = simplequeue.Template[string]{Defaults: simplequeue.NewJob{
	Queue: "texts", Timeout: 30 * time.Second,
	Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing},
}}

// site answers a request with the result of its job.
func site(q *simplequeue.SimpleQueue) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
		if err != nil {
			http.Error(w, "a text has at most 64 kB", http.StatusRequestEntityTooLarge)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		job, err := q.InsertAndWait(ctx, count.New(string(text)))
		var not *simplequeue.NotCompletedError
		switch {
		case errors.As(err, &not) && not.Job.State == simplequeue.StateUnprocessable:
			http.Error(w, not.Job.LastError(), http.StatusUnprocessableEntity)
			return
		case errors.As(err, &not):
			http.Error(w, "the text cannot be counted", http.StatusInternalServerError)
			return
		case ctx.Err() != nil: // nobody wants the answer any more
			_, _ = q.Cancel(context.WithoutCancel(r.Context()), job.ID, "the request was given up")
			http.Error(w, "no answer in time", http.StatusGatewayTimeout)
			return
		case err != nil:
			http.Error(w, "cannot take the text now", http.StatusServiceUnavailable)
			return
		}
		answer, err := simplequeue.ResultOf[Answer](job)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(answer) // the connection may be gone
	})
}

// worker makes the answers.
func worker(pool *pgxpool.Pool, given chan<- error) (*simplequeue.SimpleQueue, error) {
	return simplequeue.New(pool, simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.TypedResult("texts", func(ctx context.Context, _ *simplequeue.Job, text string) (Answer, error) {
			switch {
			case text == "":
				return Answer{}, simplequeue.Unprocessable(errors.New("there is no text"))
			case strings.HasPrefix(text, "very long"):
				<-ctx.Done() // what takes too long
				given <- context.Cause(ctx)
				return Answer{}, ctx.Err()
			}
			return Answer{Words: len(strings.Fields(text)), Letters: len(strings.ReplaceAll(text, " ", ""))}, nil
		}),
	}})
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

	given := make(chan error, 1)
	w, err := worker(pool, given)
	if err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(working) }()
	defer func() {
		stop()
		err = errors.Join(err, <-done)
	}()

	front, err := simplequeue.New(pool, simplequeue.Options{}) // another program's
	if err != nil {
		return err
	}
	s := httptest.NewServer(site(front))
	defer s.Close()
	for _, text := range []string{"to be or not to be", "", "very long and more"} {
		if err := ask(ctx, stdout, s, text); err != nil {
			return err
		}
	}
	select {
	case cause := <-given:
		fmt.Fprintln(stdout, "the worker gave up:", cause)
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// ask sends a text and prints the answer.
func ask(ctx context.Context, stdout io.Writer, s *httptest.Server, text string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, strings.NewReader(text))
	if err != nil {
		return err
	}
	answer, err := s.Client().Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%q: %s: %s\n", text, answer.Status, strings.TrimSpace(string(body)))
	return nil
}
