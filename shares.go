package simplequeue

import (
	"container/heap"
	"slices"
)

// share divides a claim among its queues where together they could take more
// than there is. Permits go to the queues that hold the fewest for their weights,
// so that what the queues hold tends to their weights as permits come free.
//
// A queue that had less than it was asked for the last time comes first, with its
// share of all; the others divide the claim as if it were not there. So a claim
// is as full as one that nobody shares, and who has jobs all the same gets its
// share.
func (b *laneBook) share(r *request) {
	room, idle := 0, 0
	all := b.portions[:0]
	for i, g := range r.groups {
		if g.queue == nil {
			continue
		}
		room += g.budget
		all = append(all, portion{group: i, most: g.budget, held: int(g.queue.route.inFlight.Load()), weight: g.queue.route.weight})
		if g.queue.idle {
			idle++
		}
	}
	b.portions = all
	if len(all) < 2 || room <= r.limit {
		return
	}
	given := make([]int, len(r.groups))
	divide(slices.Clone(all), r.limit, given)
	if idle > 0 {
		busy := slices.DeleteFunc(slices.Clone(all), func(p portion) bool { return r.groups[p.group].queue.idle })
		divide(busy, r.limit, given)
	}
	var first, then []group
	for i, g := range r.groups {
		switch {
		case g.queue == nil:
			first = append(first, g)
			continue
		case given[i] == 0: // it holds its share
			if g.all {
				g.queue.probeAt = r.now
			}
			continue
		}
		if g.budget = given[i]; g.queue.idle {
			first = append(first, g)
		} else {
			then = append(then, g)
		}
	}
	r.groups = append(first, then...)
}

// portion is what one queue gets of a claim.
type portion struct {
	group, most int
	held        int // permits, those given included
	given       int
	weight      int
}

// divide gives out n permits and notes what each group has been given.
func divide(portions portionHeap, n int, given []int) {
	for _, p := range portions {
		given[p.group] = 0
	}
	heap.Init(&portions)
	for ; n > 0 && len(portions) > 0; n-- {
		p := &portions[0]
		p.held++
		p.given++
		if given[p.group] = p.given; p.given == p.most {
			heap.Pop(&portions)
		} else {
			heap.Fix(&portions, 0)
		}
	}
}

// portionHeap has on top who holds the fewest permits for its weight.
type portionHeap []portion

func (h portionHeap) Len() int { return len(h) }

func (h portionHeap) Less(i, j int) bool {
	a, b := h[i].held*h[j].weight, h[j].held*h[i].weight
	return a < b || a == b && h[i].group < h[j].group
}

func (h portionHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *portionHeap) Push(x any)   { *h = append(*h, x.(portion)) }

func (h *portionHeap) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	*h = (*h)[:last]
	return p
}
