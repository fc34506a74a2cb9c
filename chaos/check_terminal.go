package main

import "github.com/google/uuid"

const finished = "job_finished"

// ends are the tables of jobs that have ended. job_finished is on the way to the
// others.
var ends = map[string]bool{finished: true, "job_queue_archive": true, "job_queue_dlq": true}

// checkTerminal: a job ends once, and nothing happens to it afterwards but the
// way from job_finished to its table.
func checkTerminal(h *history) (found []violation) {
	const onTheWay = "on the way"
	at := map[uuid.UUID]string{} // where an ended job is
	for i := range h.moves {
		m := &h.moves[i]
		place, ended := at[m.job]
		switch {
		case !ended && m.entered && ends[m.place], place == onTheWay && m.entered && ends[m.place] && m.place != finished:
			at[m.job] = m.place
		case place == finished && m.place == finished && !m.entered:
			at[m.job] = onTheWay
		case ended:
			found = append(found, h.breach("I3 terminal is final", m.job, "job %v had ended, and then: %v", m.job, m))
		}
	}
	return found
}
