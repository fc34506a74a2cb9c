package main

import "fmt"

// mostBytes is what a table may have grown to in a short run.
const mostBytes = 256 << 20

// checkLeftovers: a quiet queue has no leases, keys, payloads or requests left,
// and its tables are small.
func checkLeftovers(h *history) (found []violation) {
	for table, n := range h.leftovers {
		if n > 0 {
			found = append(found, violation{"I9 leftovers", fmt.Sprintf("%d rows are left in %s", n, table), nil})
		}
	}
	for table, n := range h.bytes {
		if n > mostBytes {
			found = append(found, violation{"I9 leftovers", fmt.Sprintf("%s has %d bytes", table, n), nil})
		}
	}
	return found
}
