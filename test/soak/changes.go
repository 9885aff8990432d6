//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// change is one thing that somebody does at the registry.
type change struct {
	kind  string
	name  string
	apply func(r *npmtest.Registry)
	stale int  // for so many requests the document from before is served
	hide  bool // its row never comes into the feed
}

func (c change) do(r *npmtest.Registry) {
	if c.hide {
		r.Hide(c.name)
	}
	c.apply(r)
	if c.stale > 0 {
		r.Lag(c.name, c.stale)
	}
}

// most is how many packages may lose something: fewer than the follower's bound
// on removals within an hour, which is not what this is about.
const most = 40

// plan makes up what is published first, and n changes after that, the same for
// the same seed. A tenth of the changes are hidden, all of them the last of their
// package; one in a hundred is served late.
func plan(rnd *rand.Rand, n int) (first string, changes []change) {
	versions := map[string][]string{}
	var names []string
	var archive strings.Builder
	initial := max(20, n/5)
	for range initial {
		name := fmt.Sprintf("pkg-%04d", len(names))
		if len(names)%4 == 3 {
			name = fmt.Sprintf("@scope-%d/pkg-%04d", len(names)%3, len(names))
		}
		names = append(names, name)
		for i := range 1 + rnd.IntN(3) {
			version := fmt.Sprintf("1.%d.0", i)
			versions[name] = append(versions[name], version)
			archive.WriteString(release(rnd, name, version, 0))
		}
	}
	mayDelete := slices.Clone(names)
	removals := 0
	lastOf := map[string]int{}
	add := func(c change) {
		lastOf[c.name] = len(changes)
		changes = append(changes, c)
	}
	for len(changes) < n {
		name := names[rnd.IntN(len(names))]
		has := versions[name]
		switch pick := rnd.IntN(100); {
		case pick < 25:
			name = fmt.Sprintf("new-%04d", len(changes))
			names = append(names, name)
			versions[name] = []string{"0.1.0"}
			text := release(rnd, name, "0.1.0", len(changes))
			add(change{kind: "new package", name: name, apply: func(r *npmtest.Registry) { r.Publish(text) }})
		case pick < 70:
			version := fmt.Sprintf("2.%d.0", len(changes))
			versions[name] = append(has, version)
			text := release(rnd, name, version, len(changes))
			add(change{kind: "new version", name: name, apply: func(r *npmtest.Registry) { r.Publish(text) }})
		case pick < 80:
			version, message := has[rnd.IntN(len(has))], fmt.Sprintf("since change %d", len(changes))
			add(change{kind: "deprecation", name: name, apply: func(r *npmtest.Registry) { r.Deprecate(name, version, message) }})
		case pick < 95:
			tags, _ := json.Marshal(map[string]string{"latest": has[rnd.IntN(len(has))], "next": has[len(has)-1]}) // of strings
			text := fmt.Sprintf("-- %s/dist-tags.json --\n%s\n", name, tags)
			add(change{kind: "dist-tag", name: name, apply: func(r *npmtest.Registry) { r.Publish(text) }})
		case pick < 99 && len(has) > 1 && removals < most:
			removals++
			version := has[0]
			versions[name] = has[1:]
			add(change{kind: "unpublished version", name: name, apply: func(r *npmtest.Registry) { r.Unpublish(name, version) }})
		case pick == 99 && removals < most && len(mayDelete) > 0:
			// Only of those that the follower surely held, so that a tombstone is owed.
			removals++
			i := rnd.IntN(len(mayDelete))
			name = mayDelete[i]
			mayDelete = slices.Delete(mayDelete, i, i+1)
			names = slices.DeleteFunc(names, func(s string) bool { return s == name })
			delete(versions, name)
			add(change{kind: "deletion", name: name, apply: func(r *npmtest.Registry) { r.Delete(name) }})
		}
	}
	var last []int
	for _, i := range lastOf {
		last = append(last, i)
	}
	slices.Sort(last) // a map's order is not the seed's
	rnd.Shuffle(len(last), func(i, j int) { last[i], last[j] = last[j], last[i] })
	for _, i := range last[:min(len(last), n/10)] {
		changes[i].hide = true
	}
	for late := max(1, n/100); late > 0; {
		c := &changes[rnd.IntN(n)]
		if c.kind == "new package" || c.kind == "deletion" || c.hide || c.stale > 0 {
			continue
		}
		c.stale = 1 + rnd.IntN(3)
		late--
	}
	return archive.String(), changes
}

// release is a version of a package as npmtest takes it: most tarballs small, one in
// fifty large enough to be spooled, the 500th large enough to be put into the
// node before it is whole.
func release(rnd *rand.Rand, name, version string, change int) string {
	lines := rnd.IntN(200)
	switch {
	case change > 0 && change%500 == 0:
		lines = 300_000
	case change > 0 && change%50 == 0:
		lines = 60_000
	}
	var b strings.Builder
	fmt.Fprintf(&b, "-- %s@%s/noise.txt --\n", name, version)
	for range lines {
		fmt.Fprintf(&b, "%016x%016x%016x%016x\n", rnd.Uint64(), rnd.Uint64(), rnd.Uint64(), rnd.Uint64())
	}
	return b.String()
}
