package store

import (
	"context"
	"fmt"
)

// Changes are jobs that found their unique keys taken, and change the holders.
// Payloads are all inline.
type Changes struct {
	NewJobs
	Policies []string // "replace" or "debounce"
	MostUS   []*int64 // how long after its insert the holder may be put off
}

// Holders are changed in the order of their ids, in which others take rows of one
// table, and one of them in the order of the arrays.
var takeOver = Define(`
WITH input AS MATERIALIZED (
    SELECT i.policy, i.scope, i.key, i.queue, i.kind, i.priority, i.max_attempts, i.fingerprint,
           i.payload_bytes, i.payload, i.raw, i.props, i.run_at, i.delay_us, i.most_us, i.ord
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::integer[], $8::text[],
                $9::integer[], $10::text[], $11::bytea[], $12::text[], $13::timestamptz[], $14::bigint[], $15::bigint[])
         WITH ORDINALITY
         AS i(policy, scope, key, queue, kind, priority, max_attempts, fingerprint,
              payload_bytes, payload, raw, props, run_at, delay_us, most_us, ord)
    ORDER BY {schema}.unique_holder(i.scope, i.key), i.ord
)
SELECT coalesce(t.holder::text, ''), t.replaced, t.later
FROM input AS i
CROSS JOIN LATERAL {schema}.take_over(
    i.policy, i.scope, i.key, i.queue, i.kind, i.priority, i.max_attempts, i.fingerprint,
    coalesce(i.payload_bytes, 0), i.payload::jsonb, i.raw, i.props::jsonb, i.run_at, i.delay_us, i.most_us) AS t
ORDER BY i.ord`)

// Met is what became of one job of TakeOver.
type Met struct {
	Holder   string // "" where the key is free
	Replaced bool
	Later    bool // the holder waits now
}

// TakeOver changes the holders of the keys as far as they have not started.
func (s *Schema) TakeOver(ctx context.Context, q Querier, c *Changes) ([]Met, error) {
	rows, err := q.Query(ctx, s.SQL(takeOver),
		c.Policies, c.UniqueScopes, c.UniqueKeys, c.Queues, c.Kinds, c.Priorities, c.MaxAttempts, c.Fingerprints,
		c.PayloadBytes, c.Payloads, c.Raws, c.Props, c.RunAts, c.DelaysUS, c.MostUS)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	met := make([]Met, 0, c.Len())
	for rows.Next() {
		var m Met
		if err := rows.Scan(&m.Holder, &m.Replaced, &m.Later); err != nil {
			return nil, err
		}
		met = append(met, m)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(met) != c.Len() {
		return nil, fmt.Errorf("insert met %d of %d holders", len(met), c.Len())
	}
	return met, nil
}
