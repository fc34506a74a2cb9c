package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

// startEnvironment uses the server that the environment names.
func startEnvironment(ctx context.Context, o Options) (*Server, error) {
	url := os.Getenv(o.URLVariable)
	if url == "" {
		return nil, fmt.Errorf("%s is not set", o.URLVariable)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := ping(ctx, url); err != nil {
		return nil, &bindingError{fmt.Errorf("the server that %s names does not answer, correct or unset it: %w", o.URLVariable, err)}
	}
	return &Server{url: url}, nil
}

// ping connects once.
func ping(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(conn.Ping(ctx), conn.Close(ctx))
}

// await connects until that succeeds, the server is known to have ended, or
// ctx is done.
func await(ctx context.Context, url string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	const pause = 20 * time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		err := ping(try, url)
		stop()
		if err == nil {
			return nil
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ended:
			return errEnded
		case <-ctx.Done():
			return fmt.Errorf("the server accepts no connections: %w", err)
		}
	}
}

// errEnded is the reason of a server process that ended while starting.
var errEnded = errors.New("the server process ended")
