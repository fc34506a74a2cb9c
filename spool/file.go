package spool

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of the file. Keys are numbers that only grow, big-endian.
var (
	bucketMeta  = []byte("meta")  // "format", "schema"
	bucketJobs  = []byte("jobs")  // records in the order in which they came
	bucketAside = []byte("aside") // what cannot be inserted, as asideRecord in JSON
)

const (
	format      = "1"
	lockWait    = 300 * time.Millisecond // for another process that is about to close the file
	recordExtra = 64                     // about what a record takes beside its value
	little      = 2 * mostJobs           // jobs whose replay inserts wait for
)

// file is the spool on disk. A record is a checksum, the number of its jobs, and
// the jobs.
type file struct {
	path              string
	maxJobs           int
	maxBytes          int64
	db                *bbolt.DB
	raw               *os.File // what db has open
	damaged           []uint64 // records that were set aside by openFile
	mu                sync.Mutex
	closed            bool
	waiting           []*addition
	writing           bool
	writers           sync.WaitGroup
	records           int           // in bucketJobs
	jobs, asideJobs   int           // in bucketJobs and bucketAside
	aside             int           // records in bucketAside
	bytes, asideBytes int64         // with recordExtra
	replaying         bool          // the last transaction of the replay worked
	turned            chan struct{} // closed when nothing waits any more, or replaying ends; nil if nobody asked
}

// addition is a record on its way into the file.
type addition struct {
	value []byte
	jobs  int
	done  chan error // holds one
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode makes the value of a record.
func encode(body []byte, jobs int) []byte {
	value := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint32(value[4:], uint32(jobs))
	value = append(value, body...)
	binary.BigEndian.PutUint32(value, crc32.Checksum(value[4:], castagnoli))
	return value
}

// decode returns what encode was given, or says what is wrong with the value.
func decode(value []byte) (body []byte, jobs int, problem string) {
	if len(value) < 8 {
		return nil, 0, fmt.Sprintf("it has %d bytes, a record has at least 8", len(value))
	}
	want, got := binary.BigEndian.Uint32(value), crc32.Checksum(value[4:], castagnoli)
	if want != got {
		return nil, 0, fmt.Sprintf("its checksum is %08x, and %08x was written", got, want)
	}
	return value[8:], int(binary.BigEndian.Uint32(value[4:])), ""
}

// asideRecord is a record that was set aside.
type asideRecord struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
	Jobs   int       `json:"jobs"`
	Value  []byte    `json:"value"` // the record as it was
}

func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// guarded turns a panic into an error: bbolt panics where a page is not what it
// should be, and the memory that is the file may end before it should.
func guarded(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &CorruptError{Path: path, Problem: fmt.Sprint(p)}
		}
	}()
	return f()
}

// openFile opens or makes the file, checks all of it, and sets aside records
// that are damaged.
func openFile(path string, opts Options) (*file, error) {
	f := &file{path: path, maxJobs: opts.MaxJobs, maxBytes: opts.MaxBytes}
	if err := f.open(false); err != nil {
		return nil, err
	}
	if err := f.check(); err != nil {
		f.giveUp()
		return nil, err
	}
	return f, nil
}

// giveUp closes a file that may be damaged, in whatever state bbolt is.
func (f *file) giveUp() {
	_ = guarded(f.path, f.db.Close)
	f.drop()
}

// drop closes what bbolt has left open.
func (f *file) drop() {
	if _, err := f.raw.Stat(); err == nil { // bbolt has not closed it
		unlock(f.raw)
		_ = f.raw.Close()
	}
}

// open opens the file, which nobody else may have open.
func (f *file) open(readOnly bool) error {
	options := *bbolt.DefaultOptions
	options.Timeout, options.ReadOnly, options.FreelistType, options.NoStatistics = lockWait, readOnly, bbolt.FreelistMapType, true
	options.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		var err error
		f.raw, err = os.OpenFile(name, flag, mode)
		return f.raw, err
	}
	err := guarded(f.path, func() (err error) {
		f.db, err = bbolt.Open(f.path, 0o600, &options)
		return err
	})
	var corrupt *CorruptError
	var system syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &corrupt):
		f.drop()
		return err
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%w: %s is open in another process, or twice in this one: give each process a file of its own", ErrInUse, f.path)
	case !errors.As(err, &system): // it is what bbolt has found in the file
		return &CorruptError{Path: f.path, Problem: err.Error()}
	}
	return fmt.Errorf("spool: open: %w", err)
}

// check reads every record, and with them every page in use, and makes the
// buckets of one that has none yet: it is new, or was left by an Open that did not
// come this far. bbolt's own check would end the process where a page
// leads out of the file.
func (f *file) check() error {
	damaged := map[uint64]string{}
	fresh := false
	err := guarded(f.path, func() error {
		return f.db.View(func(tx *bbolt.Tx) error {
			if info, err := f.raw.Stat(); err != nil || info.Size() < tx.Size() {
				return &CorruptError{f.path, fmt.Sprintf("it has been cut off: %d bytes belong to it (%v)", tx.Size(), err)}
			}
			if fresh = tx.ID() <= 1; fresh { // bbolt made it, and no transaction has followed
				return nil
			}
			meta, jobs, aside := tx.Bucket(bucketMeta), tx.Bucket(bucketJobs), tx.Bucket(bucketAside)
			if meta == nil || jobs == nil || aside == nil {
				return &CorruptError{f.path, "it is not a spool, or has lost a part"}
			}
			if v := string(meta.Get([]byte("format"))); v != format {
				return fmt.Errorf("spool: file %s has format %q, this program knows %q: use the program that wrote it", f.path, v, format)
			}
			err := jobs.ForEach(func(k, v []byte) error {
				_, n, problem := decode(v)
				if len(k) != 8 {
					return &CorruptError{f.path, fmt.Sprintf("a record has the key %x", k)}
				}
				if problem != "" {
					damaged[binary.BigEndian.Uint64(k)] = problem
				}
				f.records, f.jobs, f.bytes = f.records+1, f.jobs+n, f.bytes+int64(len(v))+recordExtra
				return nil
			})
			if err != nil {
				return err
			}
			return aside.ForEach(func(_, v []byte) error {
				var r asideRecord
				_ = json.Unmarshal(v, &r) // Aside shows what it can
				f.aside, f.asideJobs, f.asideBytes = f.aside+1, f.asideJobs+r.Jobs, f.asideBytes+int64(len(v))+recordExtra
				return nil
			})
		})
	})
	if err != nil {
		return err
	}
	if fresh {
		return f.found()
	}
	for n, problem := range damaged {
		if err := f.setAside(n, fmt.Sprintf("record %d of %s is damaged: %s", n, f.path, problem)); err != nil {
			return err
		}
		f.damaged = append(f.damaged, n)
	}
	return nil
}

// found makes the buckets, once the name of the file is durable.
func (f *file) found() error {
	if err := syncFolder(filepath.Dir(f.path)); err != nil {
		return err
	}
	return f.update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketJobs, bucketAside} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put([]byte("format"), []byte(format))
	})
}

// belongsTo binds the file to a schema, or fails where it has another one's
// jobs.
func (f *file) belongsTo(schema string) error {
	return f.update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		switch known := meta.Get([]byte("schema")); string(known) {
		case schema:
			return nil
		case "":
			return meta.Put([]byte("schema"), []byte(schema))
		default:
			return fmt.Errorf("spool: file %s holds jobs of schema %q, not of %q", f.path, known, schema)
		}
	})
}

func (f *file) update(do func(tx *bbolt.Tx) error) error {
	return f.mapped(guarded(f.path, func() error { return f.db.Update(do) }))
}

func (f *file) view(do func(tx *bbolt.Tx) error) error {
	return f.mapped(guarded(f.path, func() error { return f.db.View(do) }))
}

func (f *file) mapped(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// add writes a record and returns when it is synced. Additions that come while
// others are written share the next sync.
func (f *file) add(body []byte, jobs int) error {
	a := &addition{value: encode(body, jobs), jobs: jobs, done: make(chan error, 1)}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	f.waiting = append(f.waiting, a)
	if !f.writing {
		f.writing = true
		f.writers.Go(f.write)
	}
	f.mu.Unlock()
	return <-a.done
}

// write writes what waits until nothing does.
func (f *file) write() {
	for {
		f.mu.Lock()
		batch := f.waiting
		f.waiting = nil
		if f.writing = len(batch) > 0; !f.writing {
			f.turn()
			f.mu.Unlock()
			return
		}
		var fits []*addition
		jobs, bytes := f.jobs+f.asideJobs, f.bytes+f.asideBytes
		for _, a := range batch {
			size := int64(len(a.value)) + recordExtra
			if jobs+a.jobs > f.maxJobs || bytes+size > f.maxBytes {
				a.done <- &FullError{Jobs: jobs, MaxJobs: f.maxJobs, Bytes: bytes, MaxBytes: f.maxBytes}
				continue
			}
			fits, jobs, bytes = append(fits, a), jobs+a.jobs, bytes+size
		}
		f.mu.Unlock()
		if len(fits) == 0 {
			continue
		}
		err := f.update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketJobs)
			b.FillPercent = 1 // keys only grow
			for _, a := range fits {
				n, err := b.NextSequence()
				if err != nil {
					return err
				}
				if err := b.Put(key(n), a.value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			err = fmt.Errorf("spool: write %s: %w", f.path, err)
		}
		f.mu.Lock()
		for _, a := range fits {
			if err == nil {
				f.records, f.jobs, f.bytes = f.records+1, f.jobs+a.jobs, f.bytes+int64(len(a.value))+recordExtra
			}
			a.done <- err
		}
		f.mu.Unlock()
	}
}

// empty reports whether nothing waits to be inserted.
func (f *file) empty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.free()
}

// free is empty with f.mu held.
func (f *file) free() bool { return f.records == 0 && !f.writing }

// soonEmpty returns a channel that is closed when nothing waits any more, or the
// replay has stopped; nil where nothing waits, or the replay has much to do or
// does not work.
func (f *file) soonEmpty() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.free() || !f.replaying || f.jobs > little {
		return nil
	}
	if f.turned == nil {
		f.turned = make(chan struct{})
	}
	return f.turned
}

// replays notes whether the replay works.
func (f *file) replays(works bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replaying = works
	f.turn()
}

// turn tells those who wait for what soonEmpty says. f.mu is held.
func (f *file) turn() {
	if f.turned != nil && (f.free() || !f.replaying) {
		close(f.turned)
		f.turned = nil
	}
}

// record is a record as it was read.
type record struct {
	number uint64
	value  []byte // a copy
}

// after returns the records behind a number, at most so many and so many bytes,
// but at least one if there is one.
func (f *file) after(number uint64, most, bytes int) (records []record, err error) {
	err = f.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketJobs).Cursor()
		for k, v := c.Seek(key(number + 1)); k != nil && len(records) < most; k, v = c.Next() {
			if bytes -= len(v); bytes < 0 && len(records) > 0 {
				return nil
			}
			records = append(records, record{binary.BigEndian.Uint64(k), append([]byte(nil), v...)})
		}
		return nil
	})
	return records, err
}

// remove forgets records that have been inserted.
func (f *file) remove(numbers []uint64) error {
	var records, jobs int
	var bytes int64
	err := f.update(func(tx *bbolt.Tx) error {
		records, jobs, bytes = 0, 0, 0
		b := tx.Bucket(bucketJobs)
		for _, n := range numbers {
			v := b.Get(key(n))
			if v == nil {
				continue
			}
			_, count, _ := decode(v)
			records, jobs, bytes = records+1, jobs+count, bytes+int64(len(v))+recordExtra
			if err := b.Delete(key(n)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("spool: remove from %s: %w", f.path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records, f.jobs, f.bytes = f.records-records, f.jobs-jobs, f.bytes-bytes
	f.turn()
	return nil
}

// setAside moves a record to where a person finds it.
func (f *file) setAside(number uint64, reason string) error {
	var old, aside int64
	var jobs int
	err := f.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketJobs)
		v := b.Get(key(number))
		if v == nil {
			return fmt.Errorf("record %d is gone", number)
		}
		_, jobs, _ = decode(v)
		text, err := json.Marshal(asideRecord{Reason: reason, At: time.Now(), Jobs: jobs, Value: v})
		if err != nil {
			return err
		}
		old, aside = int64(len(v))+recordExtra, int64(len(text))+recordExtra
		if err := tx.Bucket(bucketAside).Put(key(number), text); err != nil {
			return err
		}
		return b.Delete(key(number))
	})
	if err != nil {
		return fmt.Errorf("spool: set aside in %s: %w", f.path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records, f.jobs, f.bytes = f.records-1, f.jobs-jobs, f.bytes-old
	f.aside, f.asideJobs, f.asideBytes = f.aside+1, f.asideJobs+jobs, f.asideBytes+aside
	f.turn()
	return nil
}

// takeAside takes records out of what is set aside: all or none. With back they
// wait again, behind the others.
func (f *file) takeAside(numbers []uint64, back bool) error {
	var freed, added int64
	var jobs int
	err := f.update(func(tx *bbolt.Tx) error {
		freed, added, jobs = 0, 0, 0
		b, aside := tx.Bucket(bucketJobs), tx.Bucket(bucketAside)
		for _, n := range numbers {
			text := aside.Get(key(n))
			if text == nil {
				return fmt.Errorf("%w: %d", ErrNoEntry, n)
			}
			var r asideRecord
			err := json.Unmarshal(text, &r)
			freed, jobs = freed+int64(len(text))+recordExtra, jobs+r.Jobs
			if back {
				if _, _, problem := decode(r.Value); err != nil || problem != "" {
					return fmt.Errorf("spool: entry %d cannot be tried again, for it cannot be read: %s", n, problem)
				}
				next, err := b.NextSequence()
				if err != nil {
					return err
				}
				added += int64(len(r.Value)) + recordExtra
				if err := b.Put(key(next), r.Value); err != nil {
					return err
				}
			}
			if err := aside.Delete(key(n)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aside, f.asideJobs, f.asideBytes = f.aside-len(numbers), f.asideJobs-jobs, f.asideBytes-freed
	if back {
		f.records, f.jobs, f.bytes = f.records+len(numbers), f.jobs+jobs, f.bytes+added
	}
	return nil
}

// close waits for what is being written and closes the file.
func (f *file) close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.writers.Wait()
	return f.mapped(f.db.Close())
}

// syncFolder makes the name of a new file durable.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}
