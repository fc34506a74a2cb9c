package simplequeue

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Notifications go over one channel per schema. A message is a list of lines:
// a lane ("0:emails"), a request to cancel ("!"), a queue paused or resumed ("="),
// a gate to look at ("&"), a test ("?token"); on the channel of those who wait for
// jobs, the id of a job ("+id"). PostgreSQL limits a message to 8000 bytes; what
// does not fit becomes "*", any lane.

const (
	maxNotification = 7900
	noteAny         = "*"
	noteCancel      = "!"
	notePause       = "="
	noteGate        = "&"
	noteProbe       = "?"
	noteEnded       = "+"
)

// maxEnded is how many jobs fit into one notification.
const maxEnded = maxNotification / (len(noteEnded) + 37)

// endedChannel is the channel of those who wait for jobs. It is another than that
// of the workers, which have no use for what is said there.
func endedChannel(channel string) string { return channel + "_ended" }

func encodeEnded(ids []uuid.UUID) string {
	lines := make([]string, len(ids))
	for i, id := range ids {
		lines[i] = noteEnded + id.String()
	}
	return strings.Join(lines, "\n")
}

// channelName is the same for every program and length of the schema's name.
func channelName(schema string) string {
	sum := sha256.Sum256([]byte(schema))
	return "simplequeue_" + hex.EncodeToString(sum[:8])
}

func encodeWake(lanes []store.Lane) string {
	var b strings.Builder
	for _, l := range lanes {
		if b.Len()+len(l.Queue)+8 > maxNotification {
			return noteAny
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(strconv.Itoa(int(l.Priority)))
		b.WriteByte(':')
		b.WriteString(l.Queue)
	}
	return b.String()
}

// encodeInserted tells of jobs that have come to run, or to wait at gates; "" for
// nothing.
func encodeInserted(lanes []store.Lane, gated bool) string {
	text := encodeWake(lanes)
	switch {
	case !gated:
		return text
	case text == "":
		return noteGate
	}
	return text + "\n" + noteGate
}

// note is a decoded notification.
type note struct {
	lanes  []store.Lane
	any    bool
	cancel bool
	pause  bool
	gate   bool
	probe  string
	ended  []uuid.UUID
}

// decodeNote reads what it can: a line that it does not understand may come
// from a newer program, and then any lane may hold jobs.
func decodeNote(payload string) note {
	var n note
	for line := range strings.SplitSeq(payload, "\n") {
		priority, queue, ok := strings.Cut(line, ":")
		lane, err := strconv.ParseInt(priority, 10, 16)
		switch {
		case line == noteCancel:
			n.cancel = true
		case line == notePause:
			n.pause = true
		case line == noteGate:
			n.gate = true
		case strings.HasPrefix(line, noteProbe):
			n.probe = line
		case strings.HasPrefix(line, noteEnded):
			if id, err := uuid.Parse(line[len(noteEnded):]); err == nil {
				n.ended = append(n.ended, id)
			} else {
				n.any = true
			}
		case ok && err == nil && queueNameProblem(queue) == "":
			n.lanes = append(n.lanes, store.Lane{Queue: queue, Priority: int16(lane)})
		default:
			n.any = true
		}
	}
	return n
}

// listener keeps one connection that listens. What is lost while it is away
// the poll interval finds; it also asks for a look at everything when it is back.
type listener struct {
	config  *pgxpool.Config
	channel string
	receive func(note)
	away    func() // told when it does not listen any more; may be nil
	log     *slog.Logger
	health  *loopHealth
}

const (
	probeEvery = 5 * time.Second
	probeLimit = 5 * time.Second
	deafRetry  = time.Minute
)

// errDeaf: LISTEN was accepted, but nothing arrives: a pooler that hands the
// connection to others between transactions.
var errDeaf = errors.New("notifications do not arrive on this connection")

func (l *listener) run(ctx context.Context) {
	retry := newRetry()
	for ctx.Err() == nil {
		err := l.listen(ctx, retry)
		if ctx.Err() != nil {
			return
		}
		if l.away != nil {
			l.away()
		}
		if errors.Is(err, errDeaf) {
			l.health.report(nil) // polling works
			l.log.WarnContext(ctx, "wake-ups by LISTEN are not available here (a pooler in transaction mode?), polling only")
			if !pause(ctx, jittered(deafRetry), func() { l.health.report(nil) }) {
				return
			}
			continue
		}
		l.health.report(err)
		if retry.count == 0 {
			l.log.WarnContext(ctx, "listening connection lost, connecting again", "err", err)
		}
		if retry.wait(ctx) != nil {
			return
		}
	}
}

// pause waits, with a sign of life now and then. It reports whether ctx lives.
func pause(ctx context.Context, d time.Duration, alive func()) bool {
	for until := time.Now().Add(d); time.Now().Before(until); alive() {
		t := time.NewTimer(min(probeEvery, time.Until(until)))
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
	return true
}

// listen connects and receives until something breaks. A connection that has
// silently died is found by a question asked in its own band.
func (l *listener) listen(ctx context.Context, retry *retry) error {
	conn, err := l.connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if err := l.hearOneself(ctx, conn); err != nil {
		return err
	}
	retry.reset()
	l.health.report(nil)
	l.receive(note{any: true, cancel: true, pause: true, gate: true})
	for {
		wait, cancel := context.WithTimeout(ctx, probeEvery)
		n, err := conn.WaitForNotification(wait)
		timedOut := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			l.health.report(nil)
			l.receive(decodeNote(n.Payload))
		case timedOut && !conn.IsClosed():
			if err := l.probe(ctx, conn); err != nil {
				return err
			}
			l.health.report(nil)
		default:
			return fmt.Errorf("wait for notification: %w", err)
		}
	}
}

// connect makes a connection outside the pool: it is never given back.
func (l *listener) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	config := l.config.ConnConfig.Copy()
	if l.config.BeforeConnect != nil {
		if err := l.config.BeforeConnect(ctx, config); err != nil {
			return nil, fmt.Errorf("prepare listening connection: %w", err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to listen: %w", err)
	}
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{l.channel}.Sanitize()); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("listen: %w", err)
	}
	return conn, nil
}

// hearOneself sends a notification and waits for it: a pooler in transaction
// mode accepts LISTEN and delivers nothing.
func (l *listener) hearOneself(ctx context.Context, conn *pgx.Conn) error {
	wait, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	token := noteProbe + rand.Text()
	if _, err := conn.Exec(wait, "SELECT pg_notify($1::text, $2::text)", l.channel, token); err != nil {
		return fmt.Errorf("notify oneself: %w", err)
	}
	for {
		n, err := conn.WaitForNotification(wait)
		switch {
		case err == nil && n.Payload == token:
			return nil
		case err == nil:
			l.receive(decodeNote(n.Payload))
		case wait.Err() != nil && ctx.Err() == nil:
			return errDeaf
		default:
			return fmt.Errorf("wait for own notification: %w", err)
		}
	}
}

// probe asks whether the connection lives and still listens.
func (l *listener) probe(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var listening bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_listening_channels() AS c WHERE c = $1::text)", l.channel).Scan(&listening)
	if err != nil {
		return fmt.Errorf("probe listening connection: %w", err)
	}
	if !listening {
		return errors.New("listening connection no longer listens")
	}
	return nil
}
