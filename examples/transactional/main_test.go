package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestRun(t *testing.T) {
	url := pgtest.EmptyDatabase(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("SIMPLEQUEUE_TEST_PROVIDER", "environment")
	pool := pgtest.Pool(t, url, 2)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out); err != nil {
		t.Fatalf("run: %v\n%s", err, &out)
	}
	if want := "rolled back: out of stock"; !strings.Contains(out.String(), want) {
		t.Errorf("output lacks %q:\n%s", want, &out)
	}
	if n := strings.Count(out.String(), "the invoice of order"); n != 2 {
		t.Errorf("%d mails, want 2:\n%s", n, &out)
	}

	if got := list(t, pool, "SELECT item || ' ' || state FROM simplequeue_shop.orders ORDER BY id"); got != "a teapot mailed, a kettle mailed" {
		t.Errorf("orders: %s", got)
	}
	got := list(t, pool, `
		SELECT o.item || ' ' || j.queue || ' ' || j.state || coalesce(' after ' || parent.queue, '')
		FROM simplequeue.job AS j
		LEFT JOIN simplequeue_shop.orders AS o ON o.id = (j.payload ->> 'order')::bigint
		LEFT JOIN simplequeue.job AS parent ON parent.id = (j.props ->> 'parent_id')::uuid
		ORDER BY o.id, j.queue`)
	want := "a teapot invoices completed, a teapot mails completed after invoices, " +
		"a kettle invoices completed, a kettle mails completed after invoices"
	if got != want {
		t.Errorf("jobs:\n got %s\nwant %s", got, want)
	}
}

// A job whose worker died after its transaction runs again and changes nothing.
func TestInvoiceTwice(t *testing.T) {
	pool := pgtest.New(t)
	if err := createShop(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	q, err := simplequeue.New(pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{invoiceHandler(pool), mailHandler(pool, &out)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := placeOrder(t.Context(), pool, q, "a teapot", nil); err != nil {
		t.Fatal(err)
	}
	again := simplequeue.NewJob{Queue: invoices, Payload: json.RawMessage(`{"order": 1}`)}
	if _, err := q.Insert(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if err := work(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "the invoice of order 1"); n != 1 {
		t.Errorf("%d mails, want 1:\n%s", n, &out)
	}
	if got := list(t, pool, "SELECT queue || ' ' || state FROM simplequeue.job ORDER BY 1"); got != "invoices completed, invoices completed, mails completed" {
		t.Errorf("jobs: %s", got)
	}
}

func list(t *testing.T, pool *pgxpool.Pool, query string) string {
	t.Helper()
	rows, err := pool.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, ", ")
}
