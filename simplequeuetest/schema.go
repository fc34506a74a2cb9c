package simplequeuetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/migrate"
)

const (
	schemaPrefix = "simplequeuetest_"
	leftAfter    = 24 * time.Hour
	dropLimit    = 10 * time.Second
)

// Schema makes a schema of the test's own in the pool's database, at the newest
// version, and returns its name, for [simplequeue.Options].Schema. It is dropped
// when the test ends. Those that crashed tests have left are dropped, too, when
// they are a day old.
//
// The pool's user must be allowed to create schemas in its database.
func Schema(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	var random [8]byte
	_, _ = rand.Read(random[:]) // does not fail
	name := schemaPrefix + strconv.FormatInt(time.Now().Unix(), 10) + "_" + hex.EncodeToString(random[:])
	cleanOnce.Do(func() { dropLeft(t, pool) })
	t.Cleanup(func() {
		if err := dropSchema(pool, name); err != nil {
			t.Errorf("simplequeuetest: %v", err)
		}
	})
	if err := migrate.UpPool(t.Context(), pool, name); err != nil {
		t.Fatalf("simplequeuetest: %v", err)
	}
	return name
}

// dropSchema uses a connection of its own: the pool may be closed by now, or all
// of its connections be in use.
func dropSchema(pool *pgxpool.Pool, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dropLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("drop schema %s: %w", name, err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "SET lock_timeout = '3s'; DROP SCHEMA IF EXISTS "+pgx.Identifier{name}.Sanitize()+" CASCADE"); err != nil {
		return fmt.Errorf("drop schema %s, is a transaction of the test still open? %w", name, err)
	}
	return nil
}

var cleanOnce sync.Once

// dropLeft drops schemas of tests that did not get to it. It is a courtesy and
// fails no test.
func dropLeft(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	rows, err := pool.Query(t.Context(), "SELECT nspname::text FROM pg_catalog.pg_namespace WHERE starts_with(nspname::text, $1::text)", schemaPrefix)
	if err != nil {
		t.Logf("simplequeuetest: look for left schemas: %v", err)
		return
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Logf("simplequeuetest: look for left schemas: %v", err)
		return
	}
	for _, name := range names {
		made, _, _ := strings.Cut(strings.TrimPrefix(name, schemaPrefix), "_")
		if at, err := strconv.ParseInt(made, 10, 64); err != nil || time.Since(time.Unix(at, 0)) < leftAfter {
			continue
		}
		if err := dropSchema(pool, name); err != nil {
			t.Logf("simplequeuetest: %v", err)
		}
	}
}
