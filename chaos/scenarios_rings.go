package main

import (
	"context"
	"fmt"
	"time"
)

func init() {
	addScenario(scenario{
		name: "rings", order: 16, about: "the tables of the rings are left behind, and emptied, again and again", strict: true,
		workloads: []string{"lasting"}, prepare: prepareRings, inject: injectRotation,
	})
}

// chunk is how many numbers in a row belong to one table of a ring.
const chunk = 1 << 18

func prepareRings(ctx context.Context, s *stage) error {
	if err := calm(ctx, s); err != nil {
		return err
	}
	return s.moveOn(ctx)
}

// moveOn has both rings come to their next tables soon.
func (s *stage) moveOn(ctx context.Context) error {
	const before = 200
	for _, number := range [][2]string{{"job_queue", "seq"}, {"job_running", "claim_id"}} {
		_, err := s.db.Exec(ctx, fmt.Sprintf(`
			SELECT setval(s.name::regclass, next.start - %d)
			FROM (SELECT pg_get_serial_sequence('simplequeue.%s', '%s')) AS s(name)
			CROSS JOIN LATERAL (SELECT (coalesce(pg_sequence_last_value(s.name::regclass), 1) / %d + 1) * %d) AS next(start)
			WHERE coalesce(pg_sequence_last_value(s.name::regclass), 1) < next.start - 10 * %d`,
			before, number[0], number[1], chunk, chunk, before))
		if err != nil {
			return err
		}
	}
	return nil
}

// injectRotation empties whatever table can be emptied, however full it is, for a
// while, and then has the rings move on.
func injectRotation(ctx context.Context, s *stage) error {
	end := s.fault("rotation")
	defer end()
	for over := time.Now().Add(1500 * time.Millisecond); time.Now().Before(over) && ctx.Err() == nil; {
		_, err := s.db.Exec(context.WithoutCancel(ctx), `
			UPDATE simplequeue.job_sweep SET swept_at = '-infinity' WHERE name = 'rotation';
			SELECT simplequeue.rotate(5000, 0)`)
		if err != nil {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
	return s.moveOn(context.WithoutCancel(ctx))
}
