package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// verdict is the outcome of a cell.
type verdict int

const (
	ok verdict = iota
	impossible
	failed
)

var verdicts = [...]string{ok: "ok", impossible: "impossible", failed: "FAILED"}

// result is one cell.
type result struct {
	verdict verdict
	why     string // of what is not ok
	note    string // what to know of one that is
	took    time.Duration
}

type table struct {
	began   time.Time
	clients []client
	cells   map[string]map[string]result // by client and operation
}

func (t *table) add(c client, op string, r result) {
	if t.cells == nil {
		t.cells = map[string]map[string]result{}
	}
	if t.cells[c.name()] == nil {
		t.cells[c.name()] = map[string]result{}
	}
	t.cells[c.name()][op] = r
}

// print writes the table, then what is impossible, noted or failed and why. It
// returns how many cells failed.
func (t *table) print(w io.Writer) int {
	var ops []string
	for _, op := range operations {
		if slices.ContainsFunc(t.clients, func(c client) bool { _, ok := t.cells[c.name()][op]; return ok }) {
			ops = append(ops, op)
		}
	}
	fmt.Fprintf(w, "%-17s", "")
	for _, c := range t.clients {
		fmt.Fprintf(w, " %-16s", c.name())
	}
	fmt.Fprintln(w)
	var count [3]int
	for _, op := range ops {
		fmt.Fprintf(w, "%-17s", op)
		for _, c := range t.clients {
			r := t.cells[c.name()][op]
			count[r.verdict]++
			fmt.Fprintf(w, " %-16s", fmt.Sprintf("%s %.1f s", verdicts[r.verdict], r.took.Seconds()))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "\n%d ok, %d impossible, %d FAILED in %.0f s\n", count[ok], count[impossible], count[failed], time.Since(t.began).Seconds())
	for _, kind := range []verdict{failed, impossible} {
		for _, c := range t.clients {
			for _, op := range ops {
				if r := t.cells[c.name()][op]; r.verdict == kind {
					fmt.Fprintf(w, "%s: %s %s: %s\n", verdicts[kind], c.name(), op, strings.ReplaceAll(r.why, "\n", "\n    "))
				}
			}
		}
	}
	for _, c := range t.clients {
		for _, op := range ops {
			if r := t.cells[c.name()][op]; r.note != "" {
				fmt.Fprintf(w, "note: %s %s: %s\n", c.name(), op, r.note)
			}
		}
	}
	return count[failed]
}
