package store

import "strings"

// job_queue and job_running are rings of tables. A row goes to the table that
// its number names (seq or claim_id): chunkSize numbers in a row to one table,
// the next to the next. A table that is left behind is emptied by TRUNCATE once
// its rows have gone, however many dead ones vacuum had to leave in it; so
// nothing here may name more tables than it needs, or that lock is never free.
//
// Statements that know the table have a text for each: {slot} is its number and
// {next} that of the one after it.
const (
	chunkBits = 18
	ringSize  = 4
)

// Chunk is the number of the run of numbers that n belongs to.
func Chunk(n int64) int64 { return n >> chunkBits }

// ChunkStart is the first number of a chunk.
func ChunkStart(chunk int64) int64 { return chunk << chunkBits }

// Slot is the place in the ring of a chunk's table.
func Slot(chunk int64) int { return int(chunk % ringSize) }

// bySlot returns the texts of a statement for each table of the ring, or the one
// text of a statement that names none.
func bySlot(text string) []string {
	if !strings.Contains(text, "{slot}") {
		return []string{text}
	}
	texts := make([]string, ringSize)
	for slot := range texts {
		texts[slot] = strings.NewReplacer(
			"{slot}", string(rune('0'+slot)), "{next}", string(rune('0'+(slot+1)%ringSize))).Replace(text)
	}
	return texts
}
