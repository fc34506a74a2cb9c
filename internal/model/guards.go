package model

// Invariant is a promise. The names of docs/reliability.md are in brackets.
type Invariant string

// What a run of the model can break.
const (
	Lost     Invariant = "a live job is where nothing will ever move it [I1]"
	OneRow   Invariant = "a job has one row [I1]"
	Fencing  Invariant = "a write of an old claim has no effect [I2]"
	Attempts Invariant = "attempts and crashes are counted, and bounded [I2]"
	Final    Invariant = "a job that has ended stays as it is [I3]"
	Taken    Invariant = "no job is taken from a worker that is alive and could not beat [I4]"
	OneKey   Invariant = "of a unique key at most one job lives, and its holder lives [I7]"
	OnTime   Invariant = "no job is runnable before it is due [I10]"
	Told     Invariant = "what Cancel has answered is so"
	OneInOne Invariant = "of an order key one job is inside"
	InOrder  Invariant = "jobs of an order key run in their order"
)

// Guard is a condition that a statement has.
type Guard uint8

// The guards. What each is, and which promise breaks without it, [Guards] tells.
const (
	ClaimMoves Guard = iota
	CountAtClaim
	FenceOfSettle
	NonceOfFence
	SettleMoves
	GiveBackReturns
	LastFailure
	CancelAtSettle
	LockAtSettle
	FenceOfBeat
	Sweeping
	LeaseOfSweep
	GapOfSweep
	SecondLook
	FenceOfSweep
	SweepMoves
	LastCrash
	CrashesInARow
	CancelAtSweep
	LockAtCancel
	LookAgain
	DueAtPromotion
	KeyTaken
	KeyReleased
	KeyKept
	RoomInGate
	PlaceInGate
	GateFreed
	GateLookedAt
	numGuards
)

// About says what a guard is.
type About struct {
	Guard  Guard
	Text   string
	Where  string // the statement that has it
	Breaks Invariant
	World  World // in which its absence is found
}

// Guards lists all guards.
var Guards = []About{
	{ClaimMoves, "a claim inserts the rows that it has deleted", "store.claimAll", OneRow, plain},
	{CountAtClaim, "an attempt is counted when it begins", "store.claimAll", Attempts, plain},
	{FenceOfSettle, "an outcome is written to the claim that it is of", "store.DeleteClaims", Fencing, plain},
	{NonceOfFence, "a claim is proved by a nonce, for its number can come again", "store.DeleteClaims", Fencing, rewinding},
	{SettleMoves, "an outcome inserts the rows that it has deleted", "janitor.settle, store.settleWaiting", Final, plain},
	{GiveBackReturns, "a job that is given back has its attempt back", "store.settleGiveBack", Attempts, plain},
	{LastFailure, "the last attempt that fails is the end", "decide, janitor.settleDLQ", Attempts, plain},
	{CancelAtSettle, "a retry looks for a request to cancel", "store.settleWaiting", Told, cancelling},
	{LockAtSettle, "and locks the row before it looks", "store.LockClaims", Told, cancelling},
	{FenceOfBeat, "a heartbeat is that of a claim", "store.beat", Fencing, plain},
	{Sweeping, "what has no heartbeat is found", "reaper.Once", Lost, plain},
	{LeaseOfSweep, "a sweep takes claims whose lease is over", "reaper.lockStale", Taken, plain},
	{GapOfSweep, "a time in which nobody could beat ages no lease", "reaper.markSweep", Taken, cutOff},
	{SecondLook, "a heartbeat that comes while a sweep looks saves its claim", "reaper.moveStale", Taken, plain},
	{FenceOfSweep, "a sweep takes the claims that it has seen", "reaper.moveStale", Fencing, plain},
	{SweepMoves, "a sweep inserts the rows that it has deleted", "reaper.moveStale", Final, plain},
	{LastCrash, "a crash in the last attempt is the end", "reaper.moveStale", Attempts, plain},
	{CrashesInARow, "crashes in a row are bounded", "reaper.moveStale", Attempts, crashing},
	{CancelAtSweep, "a sweep looks for a request to cancel", "reaper.moveStale", Told, cancelling},
	{LockAtCancel, "a request is written under the lock of the row", "store.cancelRunning", Told, cancelling},
	{LookAgain, "a cancel that meets nothing looks again", "SimpleQueue.Cancel", Told, cancelling},
	{DueAtPromotion, "what is due is promoted", "store.promote", OnTime, plain},
	{KeyTaken, "an insert takes its unique key or is skipped", "store.insertKeyed", OneKey, keyed},
	{KeyReleased, "a job that ends frees its unique key", "store.Release", OneKey, keyed},
	{KeyKept, "a job that is retried or requeued keeps its unique key", "store.Release, store.settleWaiting, reaper.moveStale", OneKey, keyed},
	{RoomInGate, "one job is let into the gate of an order key", "store.admit", OneInOne, ordered},
	{PlaceInGate, "the one with the lowest place", "store.admit", InOrder, ordered},
	{GateFreed, "a job that ends leaves its gate", "store.ReleaseGates", Lost, ordered},
	{GateLookedAt, "and has the gate looked at", "store.ReleaseGates", Lost, ordered},
}

// Rules are the guards that are in force: the zero value has all of them.
type Rules struct{ off [numGuards]bool }

// Without are the rules without one guard.
func Without(g Guard) Rules {
	var r Rules
	r.off[g] = true
	return r
}

func (r *Rules) has(g Guard) bool { return !r.off[g] }

// World is what there is, and how often what could go on for ever happens.
type World struct {
	Name                 string
	Jobs, Workers        int
	Attempts, MaxCrashes uint8
	Keyed                bool // all jobs have one unique key
	Ordered              bool // all jobs have one order key
	Delayed              bool // jobs are inserted with a delay
	// Coarse worlds have no moments within statements: each action is one call
	// of the store, the reaper, the janitor or of Cancel.
	Coarse bool
	budget budget
}

// The worlds that are explored. Together they have every kind of event; all at
// once there would be too many states.
var (
	plain = World{
		Name: "two workers, one job", Jobs: 1, Workers: 2, Attempts: 2, MaxCrashes: 5, Delayed: true,
		budget: budget{claims: 4, backs: 1, crashes: 2, sleeps: 2, lost: 1},
	}
	pair = World{
		Name: "two workers, two jobs", Jobs: 2, Workers: 2, Attempts: 2, MaxCrashes: 5,
		budget: budget{claims: 3, backs: 1, crashes: 1, sleeps: 1},
	}
	crashing = World{
		Name: "crashes", Jobs: 1, Workers: 2, Attempts: 9, MaxCrashes: 2,
		budget: budget{claims: 4, backs: 1, crashes: 3},
	}
	rewinding = World{
		Name: "a failover that loses commits", Jobs: 1, Workers: 2, Attempts: 3, MaxCrashes: 5,
		budget: budget{claims: 4, backs: 1, crashes: 1, sleeps: 1, rewinds: 1},
	}
	cutOff = World{
		Name: "a time in which nobody can beat", Jobs: 1, Workers: 2, Attempts: 3, MaxCrashes: 5,
		budget: budget{claims: 3, crashes: 1, sleeps: 1, outages: 1},
	}
	cancelling = World{
		Name: "a cancel", Jobs: 1, Workers: 2, Attempts: 3, MaxCrashes: 5,
		budget: budget{claims: 3, backs: 1, crashes: 1, sleeps: 1, lost: 1, cancels: 1},
	}
	keyed = World{
		Name: "two jobs with one unique key", Jobs: 2, Workers: 2, Attempts: 2, MaxCrashes: 5, Keyed: true,
		budget: budget{claims: 3, crashes: 1, cancels: 1},
	}
	ordered = World{
		Name: "three jobs of one order key", Jobs: 3, Workers: 2, Attempts: 2, MaxCrashes: 5, Ordered: true,
		budget: budget{claims: 4, crashes: 1},
	}
	orderedCancel = World{
		Name: "an order key and a cancel", Jobs: 2, Workers: 2, Attempts: 2, MaxCrashes: 5, Ordered: true,
		budget: budget{claims: 3, backs: 1, cancels: 1},
	}
	// Worlds are all of them.
	Worlds = []World{plain, pair, crashing, rewinding, cutOff, cancelling, keyed, ordered, orderedCancel}
)

// Start is the first state of a world.
func (w *World) Start() State {
	s := State{NextNonce: 1, left: w.budget}
	s.NextClaim = 1
	return s
}
