package simplequeue

import (
	"context"
	"time"

	cenkalti "github.com/cenkalti/backoff/v4"
)

// retry paces the tries of a loop that must not give up: quick at first, two
// seconds apart, give or take a half, at the slowest, so that work goes on soon
// after an outage.
type retry struct {
	*cenkalti.ExponentialBackOff
	count int
}

func newRetry() *retry {
	return &retry{ExponentialBackOff: cenkalti.NewExponentialBackOff(
		cenkalti.WithInitialInterval(50*time.Millisecond),
		cenkalti.WithMaxInterval(2*time.Second),
		cenkalti.WithMaxElapsedTime(0),
	)}
}

func (r *retry) wait(ctx context.Context) error {
	r.count++
	return waitFor(ctx, r.NextBackOff())
}

func (r *retry) reset() {
	r.count = 0
	r.Reset()
}

// waitFor waits, or returns the error of ctx.
func waitFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
