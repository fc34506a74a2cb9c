package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

// The queues of the shop.
const (
	invoices = "invoices"
	mails    = "mails"
)

// orderJob is the payload of both queues: the order's number. What else a
// handler needs it reads from the order.
type orderJob struct {
	Order int64 `json:"order"`
}

var errOutOfStock = errors.New("out of stock")

const createShopSQL = `
CREATE SCHEMA IF NOT EXISTS simplequeue_shop;
CREATE TABLE IF NOT EXISTS simplequeue_shop.orders (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item  text   NOT NULL,
    state text   NOT NULL DEFAULT 'placed'
)`

func createShop(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, createShopSQL)
	return err
}

const insertOrderSQL = `
INSERT INTO simplequeue_shop.orders (item)
VALUES ($1)
RETURNING id`

// placeOrder inserts an order and its job. When it fails, with problem for
// example, neither is there.
func placeOrder(ctx context.Context, pool *pgxpool.Pool, q *simplequeue.SimpleQueue, item string, problem error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, insertOrderSQL, item).Scan(&id); err != nil {
			return err
		}
		if _, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: invoices, Payload: orderJob{id}}); err != nil {
			return err
		}
		return problem
	})
}

// placeOrderSQL is placeOrder for a program that uses database/sql.
func placeOrderSQL(ctx context.Context, db *sql.DB, q *simplequeue.SimpleQueue, item string) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	var id int64
	if err := tx.QueryRowContext(ctx, insertOrderSQL, item).Scan(&id); err != nil {
		return err
	}
	if _, err := q.InsertSQLTx(ctx, tx, simplequeue.NewJob{Queue: invoices, Payload: orderJob{id}}); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
