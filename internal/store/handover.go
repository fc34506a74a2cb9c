package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Sight is what a look at a claim shows.
type Sight int

// The claim is there and nobody's, or locked by an open transaction, or gone.
const (
	ClaimGone Sight = iota
	ClaimLocked
	ClaimFree
)

// What a transaction has locked is stepped over, not waited for. The second
// statement has a later snapshot than the first: a row that is deleted between
// them is gone, and one that is freed between them still counts as locked, which
// is found out at the next look.
var (
	claimsFree = Define(`
SELECT r.claim_id
FROM {schema}.job_running_{slot} AS r
WHERE ` + fenced + `
FOR UPDATE SKIP LOCKED`)
	claimsThere = Define(`
SELECT r.claim_id AS there
FROM {schema}.job_running_{slot} AS r
WHERE ` + fenced)
)

// Look tells of each claim whether it is there and whether a transaction has it.
// The claims are sorted by id.
func (db *DB) Look(ctx context.Context, limit time.Duration, claims []Claim) (map[int64]Sight, error) {
	seen := make(map[int64]Sight, len(claims))
	as := func(s Sight) func(pgx.Rows) error {
		return func(row pgx.Rows) error {
			var id int64
			if err := row.Scan(&id); err != nil {
				return err
			}
			seen[id] = max(seen[id], s)
			return nil
		}
	}
	var steps []Step
	for len(claims) > 0 {
		var ids, nonces []int64
		n := 0
		for n < len(claims) && Chunk(claims[n].ID) == Chunk(claims[0].ID) {
			ids, nonces = append(ids, claims[n].ID), append(nonces, claims[n].Nonce)
			seen[claims[n].ID] = ClaimGone
			n++
		}
		slot, args := claims[0].Slot(), []any{ids, nonces}
		steps = append(steps,
			Step{Statement: claimsFree, Slot: slot, Args: args, Scan: as(ClaimFree)},
			Step{Statement: claimsThere, Slot: slot, Args: args, Scan: as(ClaimLocked)})
		claims = claims[n:]
	}
	return seen, db.Tx(ctx, limit, steps...)
}
