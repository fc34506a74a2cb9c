package simplequeue

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/simplequeue/simplequeue/internal/store"
)

// pgxQuerier is a pgx transaction as the store wants it.
type pgxQuerier struct{ tx pgx.Tx }

func (p pgxQuerier) Query(ctx context.Context, text string, args ...any) (store.Rows, error) {
	return p.tx.Query(ctx, text, args...)
}

// sqlQuerier is a database/sql transaction. Not every driver takes slices, so
// they go as PostgreSQL's array text, which the statements cast.
type sqlQuerier struct{ tx *sql.Tx }

func (s sqlQuerier) Query(ctx context.Context, text string, args ...any) (store.Rows, error) {
	plain := make([]any, len(args))
	for i, a := range args {
		p, err := arrayText(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		plain[i] = p
	}
	rows, err := s.tx.QueryContext(ctx, text, plain...)
	if err != nil {
		return nil, err
	}
	return sqlRows{rows}, rows.Err()
}

type sqlRows struct{ *sql.Rows }

// Close ends the rows; their error is asked for by Err.
func (s sqlRows) Close() { _ = s.Rows.Close() }

// arrayText turns a slice of values into PostgreSQL's text for it, nil into NULL.
func arrayText(arg any) (any, error) {
	var oid uint32
	switch a := arg.(type) {
	case string, int, int64, bool:
		return a, nil
	case []byte:
		if a == nil {
			return nil, nil
		}
		return a, nil
	case *string:
		if a == nil {
			return nil, nil
		}
		return *a, nil
	case []string, []*string:
		oid = pgtype.TextArrayOID
	case []int16:
		oid = pgtype.Int2ArrayOID
	case []int32:
		oid = pgtype.Int4ArrayOID
	case []int64, []*int64:
		oid = pgtype.Int8ArrayOID
	case []bool:
		oid = pgtype.BoolArrayOID
	case [][]byte:
		oid = pgtype.ByteaArrayOID
	case []*time.Time:
		oid = pgtype.TimestamptzArrayOID
	default:
		return nil, fmt.Errorf("no text form for %T", arg)
	}
	text, err := pgtype.NewMap().Encode(oid, pgtype.TextFormatCode, arg, nil)
	if err != nil || text == nil {
		return nil, err
	}
	return string(text), nil
}
