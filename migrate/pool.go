package migrate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// UpPool is [Up] on one connection of a pool.
func UpPool(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	defer conn.Release()
	return Up(ctx, conn.Conn(), schema)
}
