package simplequeue

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue/internal/store"
)

// fakeOutcomes are jobs that can be looked at, and the looks.
type fakeOutcomes struct {
	mu    sync.Mutex
	rows  map[uuid.UUID]store.Info
	looks [][][16]byte
	at    []time.Time
	err   error
}

func newFakeOutcomes(ids ...uuid.UUID) *fakeOutcomes {
	f := &fakeOutcomes{rows: map[uuid.UUID]store.Info{}}
	for _, id := range ids {
		f.set(id, store.Info{State: "running", Attempt: 1, Props: []byte(`{"awaited": true}`)})
	}
	return f
}

func (f *fakeOutcomes) set(id uuid.UUID, row store.Info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	row.ID = id
	f.rows[id] = row
}

func (f *fakeOutcomes) complete(ids ...uuid.UUID) {
	for _, id := range ids {
		f.set(id, store.Info{State: "completed", Attempt: 1})
	}
}

func (f *fakeOutcomes) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeOutcomes) look(_ context.Context, ids [][16]byte) (map[[16]byte]*store.Info, error) {
	time.Sleep(time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks, f.at = append(f.looks, ids), append(f.at, time.Now())
	if f.err != nil {
		return nil, f.err
	}
	found := map[[16]byte]*store.Info{}
	for _, id := range ids {
		if row, ok := f.rows[id]; ok {
			found[id] = &row
		}
	}
	return found, nil
}

// count is how many looks there have been since the last call.
func (f *fakeOutcomes) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.looks)
	f.looks, f.at = nil, nil
	return n
}

// listened returns waits whose listener is connected once connect is called.
func listened(f *fakeOutcomes) (w *waits, listeners *int) {
	w = &waits{jobs: map[uuid.UUID]*waited{}, woken: make(chan struct{}, 1), look: f.look}
	listeners = new(int)
	w.listen = func(ctx context.Context) {
		*listeners++
		time.Sleep(10 * time.Millisecond) // to connect
		w.received(note{any: true})
		<-ctx.Done()
		*listeners--
	}
	return w, listeners
}

// await starts waiting for jobs and returns where the results arrive.
func awaitAll(w *waits, ids []uuid.UUID, what waitUntil) <-chan error {
	done := make(chan error, len(ids))
	for _, id := range ids {
		go func() {
			info, err := w.await(context.Background(), id, what)
			if err == nil && info.ID != id {
				err = errors.New("another job")
			}
			done <- err
		}()
	}
	return done
}

func newIDs(n int) []uuid.UUID {
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ids[i] = uuid.New()
	}
	return ids
}

// A look that began before a call does not answer it: the job may have been
// redriven, and have ended anew, in between.
func TestWaitIsAnsweredByALaterLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id := uuid.New()
		f := newFakeOutcomes()
		f.set(id, store.Info{State: "failed", Attempt: 1})
		w, _ := listened(f)
		w.look = func(ctx context.Context, ids [][16]byte) (map[[16]byte]*store.Info, error) {
			found, err := f.look(ctx, ids)
			time.Sleep(10 * time.Millisecond)
			return found, err
		}
		early := awaitAll(w, []uuid.UUID{id}, waitUntil{end: true})
		time.Sleep(5 * time.Millisecond)
		f.complete(id)
		late := awaitAll(w, []uuid.UUID{id}, waitUntil{end: true})
		var failed *NotCompletedError
		if err := <-early; !errors.As(err, &failed) {
			t.Errorf("the first call: %v, want that it has failed", err)
		}
		if err := <-late; err != nil {
			t.Errorf("the second call: %v", err)
		}
		time.Sleep(time.Minute)
	})
}

// A job that one look does not find, because the session does not know of a new
// partition yet, is looked for again.
func TestWaitLooksAgainForAJobThatIsNowhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id := uuid.New()
		f := newFakeOutcomes()
		w, _ := listened(f)
		done := awaitAll(w, []uuid.UUID{id}, waitUntil{end: true})
		time.Sleep(20 * time.Millisecond)
		f.complete(id)
		if err := <-done; err != nil {
			t.Errorf("found by the second look: %v", err)
		}
		began := time.Now()
		if err := <-awaitAll(w, []uuid.UUID{uuid.New()}, waitUntil{end: true}); !errors.Is(err, ErrNotFound) {
			t.Errorf("a job that is nowhere: %v, want %v", err, ErrNotFound)
		}
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("that took %v", took)
		}
		time.Sleep(time.Minute)
	})
}

// Jobs that tell cost a look at the beginning and one at the end, and a rare one
// between, however many there are: each look is at many of them. What is told is
// seen at once, and what was told in vain within seconds.
func TestWaitsForJobsThatTell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(5000)
		f := newFakeOutcomes(ids...)
		w, listeners := listened(f)
		done := awaitAll(w, ids, waitUntil{end: true, tells: true})
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if *listeners != 1 {
			t.Errorf("%d connections listen, want 1", *listeners)
		}
		// While it connects some looks may be made; then one at each thousand.
		if n := f.count(); n > 30 {
			t.Errorf("%d looks to begin with", n)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if n := f.count(); n < 5*3 || n > 200 {
			t.Errorf("%d looks in 20 s, want a few at each thousand", n)
		}

		f.complete(ids...)
		w.received(note{ended: ids[:4000]})
		began := time.Now()
		for range 4000 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("what was told was seen after %v", took)
		}
		for range 1000 { // whose notification was lost
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 2*lookRarely {
			t.Errorf("what was told in vain was seen after %v", took)
		}
		time.Sleep(2 * waitLinger)
		synctest.Wait()
		if w.running || len(w.due) != 0 || *listeners != 0 {
			t.Errorf("running %t, %d jobs due, %d listen when nobody waits", w.running, len(w.due), *listeners)
		}
	})
}

// When the connection is lost nobody begins to poll at once, and when it is back
// one round of looks finds what has ended meanwhile. While it stays away, looks
// do what it did.
func TestWaitsWithoutTheirListener(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(3000)
		f := newFakeOutcomes(ids...)
		w, _ := listened(f)
		done := awaitAll(w, ids, waitUntil{end: true, tells: true})
		time.Sleep(5 * time.Second) // looks are made after 1 and 3 s, and would be after 7
		f.count()
		w.away()
		f.complete(ids[:1000]...)
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if n := f.count(); n > 0 {
			t.Errorf("%d looks before the connection could be back", n)
		}
		began := time.Now()
		w.received(note{any: true})
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		for range 1000 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("what had ended meanwhile was seen %v after the connection was back", took)
		}
		if n := f.count(); n != 3 {
			t.Errorf("%d looks found what had ended, want one at each thousand", n)
		}
		w.away()
		f.complete(ids[1000:]...)
		began = time.Now()
		for range 2000 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 2*lookSafely {
			t.Errorf("without a connection it took %v", took)
		}
		time.Sleep(2 * waitLinger)
	})
}

// Jobs that do not tell are looked at together, at first every few milliseconds
// and later four times a second, and nothing listens for them.
func TestWaitsForJobsThatDoNotTell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(300)
		f := newFakeOutcomes()
		for _, id := range ids {
			f.set(id, store.Info{State: "pending"})
		}
		w, listeners := listened(f)
		done := awaitAll(w, ids, waitUntil{end: true})
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		f.complete(ids[0])
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) > 50*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		time.Sleep(2 * time.Second)
		f.count()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		looked := 0
		f.mu.Lock()
		for _, l := range f.looks {
			looked += len(l)
		}
		f.mu.Unlock()
		if looked > 299*60 || looked < 299*20 {
			t.Errorf("each job was looked at %d times in 10 s", looked/299)
		}
		if *listeners != 0 {
			t.Error("somebody listens for jobs that do not tell")
		}
		f.complete(ids...)
		for range 299 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if w.running {
			t.Error("looks go on when nobody waits")
		}
	})
}

// An error that will pass ends no wait, one that will not ends all.
func TestWaitsWhenTheDatabaseFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(2)
		f := newFakeOutcomes(ids...)
		w, _ := listened(f)
		f.fail(io.ErrUnexpectedEOF)
		done := awaitAll(w, ids[:1], waitUntil{end: true})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := f.count(); n > 300 {
			t.Errorf("%d looks at a database that is away for a minute", n)
		}
		f.complete(ids...)
		f.fail(nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
		f.fail(&pgconn.PgError{Code: "42P01", Severity: "ERROR"})
		if err := <-awaitAll(w, ids[1:], waitUntil{end: true}); store.Code(err) != "42P01" {
			t.Errorf("no schema: %v", err)
		}
		time.Sleep(2 * waitLinger)
	})
}

// What is told while a job is being looked at is not lost: that look may have
// been too early.
func TestWaitsToldDuringALook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(1)
		f := newFakeOutcomes(ids...)
		w, _ := listened(f)
		reading, read := make(chan struct{}), make(chan struct{})
		looks := 0
		w.look = func(ctx context.Context, ids [][16]byte) (map[[16]byte]*store.Info, error) {
			found, err := f.look(ctx, ids)
			if looks++; looks == 3 {
				close(reading)
				<-read
			}
			return found, err
		}
		done := awaitAll(w, ids, waitUntil{end: true, tells: true})
		<-reading
		f.complete(ids...)
		w.received(note{any: true})
		w.received(note{ended: ids})
		began := time.Now()
		close(read)
		if err := <-done; err != nil || time.Since(began) > 10*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		time.Sleep(2 * waitLinger)
	})
}

// A retention of less than ten minutes is one of ten where somebody may wait, and
// only what has been attempted is told.
func TestAwaitedJobs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		awaited bool
		keep    time.Duration
		want    int64
	}{
		{true, time.Minute, 600},
		{true, time.Hour, 3600},
		{true, KeepForever, -1},
		{true, KeepNothing, -2},
		{false, time.Minute, 60},
	} {
		claim := &claim{job: &Job{awaited: c.awaited, Retention: Retention{Archive: c.keep, DeadLetter: c.keep}}, route: &queueRoute{}}
		if a, d := claim.keepArchive(), claim.keepDead(); a != c.want || d != c.want {
			t.Errorf("%+v: kept for %d and %d s", c, a, d)
		}
	}
	verdicts := map[action]verdict{
		actComplete: {action: actComplete, state: StateCompleted}, actFail: {action: actFail, state: StateFailed},
		actRetry: {action: actRetry}, actReschedule: {action: actReschedule},
		actDefer: {action: actDefer}, actPark: {action: actPark}, actGiveBack: {action: actGiveBack},
	}
	for a, v := range verdicts {
		told := len(awaitedOf([]outcomeOf{{claim: &claim{job: &Job{awaited: true}}, verdict: v}, {claim: &claim{job: &Job{}}, verdict: v}}))
		want := 1
		if a == actDefer || a == actPark || a == actGiveBack {
			want = 0
		}
		if told != want {
			t.Errorf("action %d: %d jobs are told of, want %d", a, told, want)
		}
	}
}

// Whoever comes while the last one's connection is being closed is served.
func TestWaitsBeginAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(2)
		f := newFakeOutcomes(ids...)
		f.complete(ids...)
		closing, closed := make(chan struct{}), make(chan struct{})
		w := &waits{jobs: map[uuid.UUID]*waited{}, woken: make(chan struct{}, 1), look: f.look}
		w.listen = func(ctx context.Context) {
			w.received(note{any: true})
			<-ctx.Done()
			close(closing)
			<-closed
		}
		if err := <-awaitAll(w, ids[:1], waitUntil{end: true, tells: true}); err != nil {
			t.Fatal(err)
		}
		<-closing
		done := awaitAll(w, ids[1:], waitUntil{end: true})
		synctest.Wait()
		close(closed)
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(2 * waitLinger)
	})
}

// Whoever leaves leaves nothing behind, at whatever moment.
func TestWaitsAreLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := newIDs(100)
		f := newFakeOutcomes(ids...)
		w, _ := listened(f)
		var all sync.WaitGroup
		for i, id := range ids {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
				defer cancel()
				info, err := w.await(ctx, id, waitUntil{end: true, tells: true})
				if !errors.Is(err, context.DeadlineExceeded) || info.ID != id || info.State != "" {
					t.Errorf("%v, %v", info.State, err)
				}
			})
		}
		all.Wait()
		time.Sleep(2 * waitLinger)
		synctest.Wait()
		if len(w.jobs) != 0 || len(w.due) != 0 || w.running {
			t.Errorf("%d jobs, %d due, running %t", len(w.jobs), len(w.due), w.running)
		}
	})
}

// The first attempt is over when one has been made, however the job goes on; what
// was only put off by a permit, or given back, has not been attempted.
func TestAttempted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		row  store.Info
		want bool
	}{
		{store.Info{State: "pending"}, false},
		{store.Info{State: "waiting"}, false},
		{store.Info{State: "running", Attempt: 1}, false},
		{store.Info{State: "cancelling", Attempt: 1}, false},
		{store.Info{State: "waiting", Attempt: 1}, true},
		{store.Info{State: "pending", Attempt: 1, CrashCount: 1}, true},
		{store.Info{State: "running", Attempt: 2}, true},
		{store.Info{State: "waiting", ReprocessCount: 1}, true},
		{store.Info{State: "running", Attempt: 1, ReprocessCount: 1}, true},
		{store.Info{State: "completed", Attempt: 1}, true},
		{store.Info{State: "cancelled"}, true},
	} {
		if got := attempted(&c.row); got != c.want {
			t.Errorf("%+v: attempted %t", c.row, got)
		}
	}
}
