// Package model is a small model of the life of a job, and an explorer that
// walks through every order in which workers, sweeps, cancels and failures can
// come, up to a bound. It is for tests only.
//
// Each transition stands for a statement, or for the part of one between which
// others can come; its comment names it. Each [Guard] is a condition that those
// statements have: with all of them no order of events breaks an [Invariant], and
// without any one of them the explorer finds the shortest that does. A test
// replays walks through the model on PostgreSQL, with the statements themselves,
// so that the two cannot drift apart.
package model
