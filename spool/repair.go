package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// Repaired is what [Repair] did.
type Repaired struct {
	Damaged string // where the damaged file is now
	Kept    int    // calls that are in the new file, in their order
}

// Repair saves what can be read of a damaged file: it moves that aside, to the
// same name with the time and ".damaged" behind it, where it stays, and writes a
// new one in its place. Calls whose records are damaged themselves are kept and
// set aside by the next [Open].
//
// Repair is for a file that nobody has open, and for which Open returns a
// [*CorruptError]; any other is left as it is, with an error.
func Repair(path string) (Repaired, error) {
	opts, _ := Options{}.withDefaults()
	if f, err := openFile(path, opts); err == nil {
		return Repaired{}, errors.Join(fmt.Errorf("spool: file %s is not damaged", path), f.close())
	} else if corrupt := (*CorruptError)(nil); !errors.As(err, &corrupt) {
		return Repaired{}, err
	}
	now := time.Now().UTC()
	r := Repaired{Damaged: fmt.Sprintf("%s.%s.damaged", path, now.Format("20060102T150405.000000000Z"))}
	fresh := path + ".repaired"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Repaired{}, fmt.Errorf("spool: %w", err)
	}
	to, err := openFile(fresh, opts)
	if err != nil {
		return Repaired{}, err
	}
	err = r.copy(path, to)
	if err = errors.Join(err, to.close()); err != nil {
		return Repaired{}, fmt.Errorf("spool: repair %s: %w", path, err)
	}
	if err := os.Link(path, r.Damaged); err != nil { // so that path is never missing
		return Repaired{}, fmt.Errorf("spool: repair: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return Repaired{}, fmt.Errorf("spool: repair: %w", err)
	}
	return r, syncFolder(filepath.Dir(path))
}

// copy copies every record that can be reached. Each is looked up by itself: a
// damaged page takes along only those that are on it, or behind it.
func (r *Repaired) copy(path string, to *file) error {
	from := &file{path: path}
	if err := from.open(true); err != nil {
		var corrupt *CorruptError
		if errors.As(err, &corrupt) {
			return nil // nothing can be reached
		}
		return err
	}
	defer from.giveUp()
	var last uint64
	var schema []byte
	_ = from.view(func(tx *bbolt.Tx) error { // what is not found stays empty
		last = tx.Bucket(bucketJobs).Sequence()
		schema = append(schema, tx.Bucket(bucketMeta).Get([]byte("schema"))...)
		return nil
	})
	return to.update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket(bucketJobs).SetSequence(last); err != nil {
			return err
		}
		if len(schema) > 0 {
			if err := tx.Bucket(bucketMeta).Put([]byte("schema"), schema); err != nil {
				return err
			}
		}
		for _, bucket := range [][]byte{bucketJobs, bucketAside} {
			for k, v := from.next(bucket, 0, last); k > 0; k, v = from.next(bucket, k, last) {
				if err := tx.Bucket(bucket).Put(key(k), v); err != nil {
					return err
				}
				r.Kept++
			}
		}
		return nil
	})
}

// next returns the first record behind a number that can be reached, 0 if there
// is none.
func (f *file) next(bucket []byte, behind, last uint64) (number uint64, value []byte) {
	for ; behind < last; behind++ {
		err := f.view(func(tx *bbolt.Tx) error {
			k, v := tx.Bucket(bucket).Cursor().Seek(key(behind + 1))
			if len(k) != 8 {
				return nil
			}
			if at := binary.BigEndian.Uint64(k); at > behind && at <= last {
				number, value = at, append([]byte(nil), v...)
			}
			return nil
		})
		if err == nil {
			return number, value
		}
	}
	return 0, nil
}
