package simplequeue

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/migrate"
)

// Options configures a [SimpleQueue]. The zero value works: such a queue can
// insert and inspect; to run jobs it needs Handlers.
type Options struct {
	// Schema is the PostgreSQL schema of the tables. Default "simplequeue".
	Schema string
	// Handlers run the jobs. A queue without one is left for other programs.
	Handlers []Handler
	// Middleware wraps every handler, the first one outermost.
	Middleware []Middleware
	// InsertMiddleware wraps every insert, the first one outermost.
	InsertMiddleware []InsertMiddleware
	// Spool keeps inserts on this machine while the database cannot be reached,
	// and makes them later: package spool has one. Default none: such an insert
	// fails.
	Spool Spool
	// Name shows operators which program a worker is. Default: host and pid.
	Name string
	// Logger is where the library logs. Default slog.Default().
	Logger *slog.Logger
	// LogSink stores what handlers log by the [Logger] of their context:
	// [LogTable] in the database. Default none: they log to Options.Logger.
	LogSink LogSink
	// LogLevel is the level from which on the sink gets lines. Default
	// slog.LevelInfo.
	LogLevel slog.Leveler

	// GlobalPermits is how many jobs run at once in this process. Default 500.
	GlobalPermits int
	// QueuePermits is how many jobs of one queue run at once in this process.
	// Default 100. See also [SimpleQueue.SetQueuePermits].
	QueuePermits int
	// PayloadMemory is how many bytes of payloads this process holds at once, of
	// those above 1 kB, by their size at insert; a payload larger than all of it
	// takes all of it. A job has its share from before its payload is fetched
	// until its handler has returned. Default 256 MiB.
	PayloadMemory int
	// PermitWait is how long a claimed job waits for its queue's permit, then for
	// payload memory and then for its handler's permit, for each of the three anew,
	// before it is given back. 1 ms to 24 h, default 500 ms.
	PermitWait time.Duration
	// ClaimThreshold is how many global permits must be free before jobs are
	// claimed: fewer, larger claims. Default 1.
	ClaimThreshold int
	// PollInterval is how often queues are looked at without a wake-up: 1 ms to
	// 24 h, default 1 s.
	PollInterval time.Duration
	// PollOnly does without LISTEN and NOTIFY. Behind PgBouncer in transaction
	// mode LISTEN never delivers; polling is always correct.
	PollOnly bool

	// HeartbeatInterval is how often the lease of a running job is renewed: 10 ms
	// to 24 h, default 5 s. A job whose worker has been silent for 2.5 intervals is
	// taken to be abandoned.
	HeartbeatInterval time.Duration
	// ReaperInterval is how often abandoned jobs are looked for: 10 ms to 24 h.
	// Default: the heartbeat interval.
	ReaperInterval time.Duration
	// JanitorInterval is how often jobs that ended outside a worker move to
	// the archive and the DLQ: 10 ms to 24 h, default 1 s.
	JanitorInterval time.Duration

	// Aging lets waiting jobs of low priority rise: a job runs before every job of
	// its queue that enters it later by more than the difference of their
	// priorities times Aging, so that none is starved by others however many they
	// are. At most a year. Default none: strictly by priority. Negative, for a
	// queue, means none.
	Aging time.Duration
	// MaxAttempts is how often a job may be started. Default 3. It, and that of
	// Queues, counts where jobs are inserted: a program that only runs them does
	// not change the number they were given.
	MaxAttempts int
	// Backoff is the delay before the next attempt. Default exponential from
	// 1 s, doubling, at most 1 h, with full jitter. Use [BackoffFunc] for one
	// that sees the job and the error. It counts where jobs run.
	Backoff backoff.Policy
	// Timeout bounds one attempt, of jobs that run here: the context of its handler
	// ends with [ErrTimeout]. Default none.
	Timeout time.Duration
	// StuckAfter is how long a handler may go on after its context has ended
	// before the engine gives up on it: the attempt is recorded as failed, the
	// handler is reported as stuck and keeps its permits until it returns.
	// Default 1 min; negative waits for ever.
	StuckAfter time.Duration
	// MaxReschedules is the number of the reschedule that ends a job as bad_job: of
	// 100, 99 are carried out. Reschedules do not use up attempts. Default 100;
	// negative means no limit.
	MaxReschedules int
	// MaxCrashes is the number of the crash, of those in a row, that ends a job as
	// bad_job: it is how often its worker may die. Default 3.
	MaxCrashes int
	// Retention is how long finished jobs are kept. Default 7 days in the archive,
	// 30 days in the dead letter queue.
	Retention Retention
	// MaxPayloadBytes bounds Payload and Raw of a job together, where it is
	// inserted; and where it runs, its result, and its steps together. Numbers of
	// JSON count as PostgreSQL prints them, with all their digits: 1e1000 has 1001
	// bytes. At most 256 MiB, default 1 MiB.
	MaxPayloadBytes int
	// Queues overrides defaults queue by queue, by their exact names: a handler's
	// prefix ("mail.*") cannot stand here.
	Queues map[string]QueueOptions

	// Stop bounds the phases in which Run stops.
	Stop StopTimeouts
	// ControlConns is the size of the engine's own connection pool, which
	// handlers cannot starve: 2 to 1024, default 3. Beside it one connection is for
	// heartbeats and, unless PollOnly is set, one listens; another one listens while
	// somebody waits for jobs.
	ControlConns int

	// finishAside sends every outcome through job_finished, where the janitor
	// picks it up. Tests only.
	finishAside bool
}

// QueueOptions overrides [Options] for one queue. Zero fields inherit.
type QueueOptions struct {
	// Permits is [Options].QueuePermits of this queue.
	Permits int
	// Weight, 1 to 1000, is the queue's share of the global permits while other
	// queues of the process have work for them too: of a queue of weight 3 three
	// times as many jobs run as of one of weight 1, as far as its own permits
	// reach. Default 1.
	Weight int
	// Aging is that of [Options]; negative for none.
	Aging time.Duration
	// MaxAttempts is that of [Options]: it counts where jobs are inserted.
	MaxAttempts int
	// Backoff is that of [Options]. One of the handler's [Template] goes before it.
	Backoff backoff.Policy
	// Timeout is that of [Options]; [NoTimeout] for none. One of the job goes before
	// it.
	Timeout time.Duration
	// Retention is that of [Options], field by field. One of the job goes before it.
	Retention Retention
	// FIFO makes the queue strictly first in, first out: one job at a time, in
	// the order in which their inserts committed, as if all jobs shared one
	// OrderKey. It and BlockDead count where jobs are inserted: set them in every
	// program that does.
	FIFO bool
	// BlockDead keeps an order key closed when one of its jobs ends dead (as
	// failed, bad_job, unprocessable or critical_failure), until
	// [SimpleQueue.ReleaseKey]. Otherwise the next job of the key runs.
	BlockDead bool
}

// StopTimeouts bounds the phases of a stop. First nothing more is claimed and
// the running jobs get Drain to finish; then their contexts are cancelled with
// ErrShutdown and they get Cancel to return; what still runs then is given back
// and abandoned; last, outcomes get Flush to be written.
type StopTimeouts struct {
	Drain  time.Duration // default 30 s; negative means at once
	Cancel time.Duration // default 5 s; negative means at once
	Flush  time.Duration // 1 ms to 24 h, default 5 s; not negative: outcomes need some time
}

// BackoffFunc is a [backoff.Policy] that sees the job and the error. What it
// returns is clamped to 0 and [backoff.MaxDelay].
type BackoffFunc func(job *Job, err error) time.Duration

// Delay is not used by the engine, which gives the function the job itself.
func (f BackoffFunc) Delay(attempt int) time.Duration { return f(&Job{Attempt: attempt}, nil) }

// withDefaults returns a checked copy with every default filled in.
func (o Options) withDefaults() (Options, error) {
	def(&o.Schema, "simplequeue")
	if o.Name == "" {
		host, _ := os.Hostname()
		o.Name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.LogLevel == nil {
		o.LogLevel = slog.LevelInfo
	}
	def(&o.GlobalPermits, 500)
	def(&o.QueuePermits, 100)
	def(&o.PayloadMemory, 256<<20)
	def(&o.PermitWait, 500*time.Millisecond)
	def(&o.ClaimThreshold, 1)
	def(&o.PollInterval, time.Second)
	def(&o.HeartbeatInterval, 5*time.Second)
	def(&o.ReaperInterval, o.HeartbeatInterval)
	def(&o.JanitorInterval, time.Second)
	def(&o.MaxAttempts, 3)
	def(&o.StuckAfter, time.Minute)
	def(&o.MaxReschedules, 100)
	def(&o.MaxCrashes, 3)
	def(&o.Retention.Archive, 7*24*time.Hour)
	def(&o.Retention.DeadLetter, 30*24*time.Hour)
	def(&o.MaxPayloadBytes, defaultMaxPayload)
	def(&o.Stop.Drain, 30*time.Second)
	def(&o.Stop.Cancel, 5*time.Second)
	def(&o.Stop.Flush, 5*time.Second)
	def(&o.ControlConns, 3)
	if o.Backoff == nil {
		o.Backoff = backoff.Default
	}
	o.Queues = maps.Clone(o.Queues) // the caller may go on to change its own
	return o, o.validate()
}

func (o *Options) validate() error {
	if err := migrate.ValidateSchema(o.Schema); err != nil {
		return &InvalidOptionError{"Schema", o.Schema, err.Error()}
	}
	for _, c := range []struct {
		name  string
		value int
		max   int
	}{
		{"GlobalPermits", o.GlobalPermits, 1 << 20},
		{"QueuePermits", o.QueuePermits, 1 << 20},
		{"ClaimThreshold", o.ClaimThreshold, o.GlobalPermits},
		{"MaxAttempts", o.MaxAttempts, maxAttempts},
		{"MaxCrashes", o.MaxCrashes, 1 << 20},
		{"MaxPayloadBytes", o.MaxPayloadBytes, 256 << 20},
	} {
		if c.value < 1 || c.value > c.max {
			return &InvalidOptionError{c.name, c.value, fmt.Sprintf("must be 1 to %d, or 0 for the default", c.max)}
		}
	}
	if o.PayloadMemory < 0 {
		return &InvalidOptionError{"PayloadMemory", o.PayloadMemory, "must be positive, or 0 for the default"}
	}
	if o.ControlConns < 2 || o.ControlConns > 1<<10 {
		return &InvalidOptionError{"ControlConns", o.ControlConns, "must be 2 to 1024, or 0 for the default: claims and outcomes need a connection each"}
	}
	for _, c := range []struct {
		name  string
		value time.Duration
		min   time.Duration
	}{
		{"PermitWait", o.PermitWait, time.Millisecond},
		{"PollInterval", o.PollInterval, time.Millisecond},
		{"HeartbeatInterval", o.HeartbeatInterval, 10 * time.Millisecond},
		{"ReaperInterval", o.ReaperInterval, 10 * time.Millisecond},
		{"JanitorInterval", o.JanitorInterval, 10 * time.Millisecond},
		{"Stop.Flush", o.Stop.Flush, time.Millisecond},
	} {
		if c.value < c.min || c.value > 24*time.Hour {
			return &InvalidOptionError{c.name, c.value, fmt.Sprintf("must be %v to 24h, or 0 for the default", c.min)}
		}
	}
	if o.Aging < 0 || o.Aging > maxAging {
		return &InvalidOptionError{"Aging", o.Aging, fmt.Sprintf("must be at most %v, or 0 for none", maxAging)}
	}
	if o.Timeout < NoTimeout {
		return &InvalidOptionError{"Timeout", o.Timeout, "must be positive, or 0 or NoTimeout for none"}
	}
	if err := o.Retention.validate("Retention"); err != nil {
		return err
	}
	if err := validatePolicy("Backoff", o.Backoff); err != nil {
		return err
	}
	for i, m := range o.InsertMiddleware {
		if m == nil {
			return &InvalidOptionError{fmt.Sprintf("InsertMiddleware[%d]", i), nil, "must not be nil"}
		}
	}
	for name, q := range o.Queues {
		field := fmt.Sprintf("Queues[%q]", name)
		if problem := queueNameProblem(name); problem != "" {
			return &InvalidOptionError{field, name, problem}
		}
		if q.Permits < 0 || q.Permits > 1<<20 {
			return &InvalidOptionError{field + ".Permits", q.Permits, "must be 1 to 1048576, or 0 for Options.QueuePermits"}
		}
		if q.Weight < 0 || q.Weight > maxWeight {
			return &InvalidOptionError{field + ".Weight", q.Weight, fmt.Sprintf("must be 1 to %d, or 0 for 1", maxWeight)}
		}
		if q.Aging > maxAging {
			return &InvalidOptionError{field + ".Aging", q.Aging, fmt.Sprintf("must be at most %v, 0 for Options.Aging or negative for none", maxAging)}
		}
		if q.MaxAttempts < 0 || q.MaxAttempts > maxAttempts {
			return &InvalidOptionError{field + ".MaxAttempts", q.MaxAttempts, fmt.Sprintf("must be 1 to %d, or 0 for Options.MaxAttempts", maxAttempts)}
		}
		if q.Timeout < NoTimeout {
			return &InvalidOptionError{field + ".Timeout", q.Timeout, "must be positive, 0 for Options.Timeout or NoTimeout for none"}
		}
		if err := q.Retention.validate(field + ".Retention"); err != nil {
			return err
		}
		if err := validatePolicy(field+".Backoff", q.Backoff); err != nil {
			return err
		}
	}
	return nil
}

// validatePolicy asks a policy that can check itself whether it makes sense.
func validatePolicy(field string, p backoff.Policy) error {
	if v, ok := p.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return &InvalidOptionError{field, p, err.Error()}
		}
	}
	return nil
}

func (r Retention) validate(field string) error {
	for _, f := range []struct {
		name string
		keep time.Duration
	}{{"Archive", r.Archive}, {"DeadLetter", r.DeadLetter}} {
		if problem := keepProblem(f.keep); problem != "" {
			return &InvalidOptionError{field + "." + f.name, f.keep, problem}
		}
	}
	return nil
}

func keepProblem(keep time.Duration) string {
	if keep == KeepNothing || keep == KeepForever || keep >= 0 && keep <= maxKeep {
		return ""
	}
	return "must be positive and at most 10 years, KeepNothing, KeepForever, or 0 for the default"
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

const (
	maxQueueName      = 128
	maxAttempts       = 1 << 20
	maxWeight         = 1000 // of a queue, and of a fairness key
	maxAging          = 365 * 24 * time.Hour
	defaultMaxPayload = 1 << 20
)

// queueNameProblem says what is wrong with the name of a queue, or nothing.
func queueNameProblem(name string) string {
	switch {
	case name == "":
		return "must not be empty: name the queue"
	case len(name) > maxQueueName:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(name), maxQueueName)
	case !utf8.ValidString(name):
		return "is not valid UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		return "holds a control character"
	case strings.Contains(name, "*"):
		return "holds '*', which only a handler's prefix may"
	}
	return ""
}
