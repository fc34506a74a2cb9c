package simplequeue

import (
	"cmp"
	"encoding/json"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

func byLane(a, b store.Claimed) int {
	return cmp.Or(cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.Seq, b.Seq))
}

// newClaim makes the job of a claimed row.
func newClaim(row *store.Claimed, nonce int64, now time.Time) *claim {
	job := &Job{
		ID: row.ID, Queue: row.Queue, Kind: row.Kind, Payload: row.Payload, Raw: row.Raw,
		Priority: int(row.Priority), Attempt: int(row.Attempt), MaxAttempts: int(row.MaxAttempts),
		ReprocessCount: int(row.ReprocessCount), CrashCount: int(row.CrashCount),
		UniqueKey: deref(row.UniqueKey), Fingerprint: deref(row.Fingerprint), CreatedAt: row.CreatedAt,
	}
	job.fill(row.Errors, row.Props)
	return &claim{
		job: job, id: row.ClaimID, nonce: nonce, suspect: row.Lane == store.SuspectLane,
		payloadBytes: int64(row.PayloadBytes), claimedAt: now, verdict: make(chan error, 1),
	}
}

// fill decodes what the tables keep as JSON. A value that a newer program wrote
// in a form unknown here is passed over, not lost: rows move as they are.
func (j *Job) fill(errors, properties []byte) {
	if errors != nil {
		_ = json.Unmarshal(errors, &j.Errors)
	}
	if properties == nil {
		return
	}
	var p props
	_ = json.Unmarshal(properties, &p)
	j.Metadata, j.TraceContext = p.Metadata, p.TraceContext
	j.OrderKey, j.FairnessKey, j.gates = p.OrderKey, p.FairnessKey, p.Gates
	j.Timeout = time.Duration(p.TimeoutMS) * time.Millisecond
	if p.TimeoutMS < 0 {
		j.Timeout = NoTimeout
	}
	j.awaited = p.Awaited
	j.Retention = Retention{Archive: keepDuration(p.KeepArchive), DeadLetter: keepDuration(p.KeepDLQ)}
	if p.ParentID != nil {
		j.ParentID = *p.ParentID
	}
	if p.RootID != nil {
		j.RootID = *p.RootID
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
