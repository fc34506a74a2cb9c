package store

import (
	"encoding/binary"
	"io"
	"sync"
)

// Jobs that run now and hold no key go in by COPY when they are many: the server
// writes whole pages of them, where an INSERT takes each row by itself.
const copyPlain = `
COPY {schema}.job_queue
    (id, queue, kind, priority, lane, max_attempts, payload_bytes, fingerprint, payload, raw, props)
FROM STDIN (FORMAT binary)`

const copyColumns = 11

var insertBeside = Define(`
WITH lane AS (
    INSERT INTO {schema}.job_lane (queue, priority)
    SELECT l.queue, l.priority
    FROM unnest($1::text[], $2::smallint[]) AS l(queue, priority)
    WHERE NOT EXISTS (
        SELECT FROM {schema}.job_lane AS known
        WHERE known.queue = l.queue AND known.priority = l.priority)
), fingerprint AS (
    INSERT INTO {schema}.job_fingerprint (fingerprint, job_id)
    SELECT f.fingerprint, f.id::uuid
    FROM unnest($3::text[], $4::text[]) AS f(id, fingerprint)
), big AS (
    INSERT INTO {schema}.job_payload (id, payload, raw)
    SELECT b.id::uuid, b.payload::jsonb, b.raw
    FROM unnest($5::text[], $6::text[], $7::bytea[]) AS b(id, payload, raw)
)
SELECT`)

// InsertBeside inserts what the jobs of a CopyPlain have beside their rows. It
// reads the lanes, the big payloads, and IDs with Fingerprints: of the jobs that
// have one.
func (s *Schema) InsertBeside(n *NewJobs) (sql string, args []any) {
	return s.SQL(insertBeside), []any{
		n.LaneQueues, n.LanePriorities, n.IDs, n.Fingerprints, n.BigIDs, n.BigPayloads, n.BigRaws,
	}
}

// PlainJob is a row of CopyPlain.
type PlainJob struct {
	ID           [16]byte
	Queue, Kind  string
	Priority     int16
	MaxAttempts  int32
	PayloadBytes int32 // above zero: the payload is stored apart
	Fingerprint  *string
	Payload      *string // JSON text
	Raw          []byte
	Props        *string // JSON text
}

// CopyPlain returns the text of the COPY and what is to be sent with it: n rows,
// made while the server takes in those before. An error of row ends it. When data
// is closed no call of row is under way, nor comes.
func (s *Schema) CopyPlain(n int, row func(i int) (PlainJob, error)) (sql string, data io.ReadCloser) {
	// https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), make([]byte, 8)...)
	return s.expand(copyPlain), &copyReader{left: header, n: n, row: row}
}

type copyReader struct {
	mu     sync.Mutex // pgx may leave a read behind when a connection breaks
	buffer []byte     // made once
	left   []byte     // not read yet
	next   int        // row to make; n is the end mark, n+1 nothing
	n      int
	row    func(i int) (PlainJob, error)
}

// Read makes rows until what it has is enough to fill p.
func (r *copyReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.row == nil {
		return 0, io.ErrClosedPipe
	}
	if len(r.left) < len(p) && r.next <= r.n {
		r.buffer = append(r.buffer[:0], r.left...)
		for len(r.buffer) < len(p) && r.next <= r.n {
			if r.next == r.n {
				r.buffer = binary.BigEndian.AppendUint16(r.buffer, 0xffff)
			} else {
				j, err := r.row(r.next)
				if err != nil {
					return 0, err
				}
				r.buffer = appendPlain(r.buffer, j)
			}
			r.next++
		}
		r.left = r.buffer
	}
	if len(r.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// Close never fails.
func (r *copyReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = nil
	return nil
}

func appendPlain(to []byte, j PlainJob) []byte {
	to = binary.BigEndian.AppendUint16(to, copyColumns)
	to = append(binary.BigEndian.AppendUint32(to, 16), j.ID[:]...)
	to = appendText(to, &j.Queue)
	to = appendText(to, &j.Kind)
	for range 2 { // the lane of a new job is its priority
		to = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(to, 2), uint16(j.Priority))
	}
	to = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(to, 4), uint32(j.MaxAttempts))
	to = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(to, 4), uint32(j.PayloadBytes))
	to = appendText(to, j.Fingerprint)
	to = appendJSON(to, j.Payload)
	if j.Raw == nil {
		to = appendNull(to)
	} else {
		to = append(binary.BigEndian.AppendUint32(to, uint32(len(j.Raw))), j.Raw...)
	}
	return appendJSON(to, j.Props)
}

func appendNull(to []byte) []byte { return binary.BigEndian.AppendUint32(to, 0xffffffff) }

func appendText(to []byte, s *string) []byte {
	if s == nil {
		return appendNull(to)
	}
	return append(binary.BigEndian.AppendUint32(to, uint32(len(*s))), *s...)
}

// appendJSON appends jsonb: a version number and the text.
func appendJSON(to []byte, s *string) []byte {
	if s == nil {
		return appendNull(to)
	}
	to = append(binary.BigEndian.AppendUint32(to, uint32(len(*s)+1)), 1)
	return append(to, *s...)
}
