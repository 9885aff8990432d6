package mirror

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// diffed is what Diff says over the socket and, which must be the same, by itself, a
// line each.
func diffed(t *testing.T, table *Table, q DiffQuery) []string {
	t.Helper()
	collect := func(packages iter.Seq2[PackageDiff, error], err error) (lines []string) {
		check(t, err)
		for p, err := range packages {
			check(t, err)
			line := p.String()
			for _, l := range p.Locked {
				line += fmt.Sprintf(" [%s %s %s]", l.Version, l.State, strings.Join(l.Newer, " "))
				if l.Integrity != nil {
					line += fmt.Sprintf(" (%.9s, not %.9s)", l.Integrity.Registry, l.Integrity.Lock)
				}
			}
			lines = append(lines, strings.TrimSpace(p.Registry+" "+line))
		}
		return lines
	}
	_, packages, err := table.Diff(t.Context(), q)
	own := collect(packages, err)
	lock, err := json.Marshal(q.Lock)
	check(t, err)
	w := httptest.NewRecorder()
	table.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/diff?from="+q.From+"&to="+q.To, strings.NewReader(string(lock))))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	_, packages, err = ReadDiff(w.Body)
	if got := collect(packages, err); !slices.Equal(got, own) {
		t.Errorf("over the socket %q, else %q", got, own)
	}
	return own
}

// changing is a world of three releases, in which versions and tags come and go.
func changing(t *testing.T) *world {
	w := newWorldOf(t, `
-- left-pad@1.0.0/package.json --
{"name":"left-pad","version":"1.0.0"}
-- left-pad@1.3.0/package.json --
{"name":"left-pad","version":"1.3.0"}
-- left-pad/dist-tags.json --
{"latest":"1.0.0","old":"1.0.0"}
-- is-odd@3.0.1/package.json --
{"name":"is-odd","version":"3.0.1","dependencies":{"left-pad":"~1.0.0"}}
-- is-even@1.0.0/package.json --
{"name":"is-even","version":"1.0.0","dependencies":{"pad":"npm:left-pad@^1.3.0"}}
`)
	w.now = dated(1)
	w.publish("left-pad", "is-odd")
	w.registry.Publish(`
-- left-pad@1.0.7/package.json --
{"name":"left-pad","version":"1.0.7"}
-- left-pad@1.4.0/package.json --
{"name":"left-pad","version":"1.4.0"}
-- left-pad@2.0.0/package.json --
{"name":"left-pad","version":"2.0.0"}
-- left-pad/dist-tags.json --
{"latest":"2.0.0","next":"2.0.0"}
`)
	w.now = dated(2)
	w.publish("left-pad", "is-odd", "is-even")
	w.registry.Unpublish("left-pad", "1.3.0")
	w.now = dated(3)
	w.publish("left-pad", "is-even")
	return w
}

func TestDiff(t *testing.T) {
	w := changing(t)
	table := atTable(t, w.synced())
	for _, tt := range []struct {
		from, to string
		want     []string
	}{
		{"1", "1", nil},
		{"1", "2", []string{"+ is-even +1.0.0", "~ left-pad +1.0.7 +1.4.0 +2.0.0 latest:1.0.0->2.0.0 next:none->2.0.0 old:1.0.0->none"}},
		{"2", "now", []string{"- is-odd -3.0.1", "~ left-pad -1.3.0"}},
		{"2026-03-02", "2026-03-03T12:00:00Z", []string{"+ is-even +1.0.0", "~ left-pad +1.0.7 +1.4.0 +2.0.0 latest:1.0.0->2.0.0 next:none->2.0.0 old:1.0.0->none"}},
		{"now", "2", []string{"+ is-odd +3.0.1", "~ left-pad +1.3.0"}},
	} {
		if got := diffed(t, table, DiffQuery{From: tt.from, To: tt.to}); !slices.Equal(got, tt.want) {
			t.Errorf("%s to %s: %q, want %q", tt.from, tt.to, got, tt.want)
		}
	}
	for q, want := range map[DiffQuery]error{{From: "nothing", To: "now"}: ErrMoment, {From: "9", To: "now"}: ErrNoRelease, {From: "now", To: "2026-01-01"}: ErrNoRelease} {
		if _, _, err := table.Diff(t.Context(), q); !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", q, err, want)
		}
		w := httptest.NewRecorder()
		table.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/diff?from="+q.From+"&to="+q.To, strings.NewReader("null")))
		if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), want.Error()) {
			t.Errorf("%v: %d %s", q, w.Code, w.Body)
		}
	}
}

// Lines are by name, however the lists are built.
func TestDiffIsByName(t *testing.T) {
	var archive strings.Builder
	var names []string
	for i := range 60 {
		name := fmt.Sprintf("p%d", i*7919%60)
		if i%3 == 0 {
			name = "@s/" + name
		}
		fmt.Fprintf(&archive, "-- %s@1.0.0/package.json --\n{\"name\":%q,\"version\":\"1.0.0\"}\n", name, name)
		names = append(names, name)
	}
	w := newWorldOf(t, archive.String())
	w.now = dated(1)
	w.publish(names[0])
	w.now = dated(2)
	w.publish(names...)
	got := diffed(t, atTable(t, w.synced()), DiffQuery{From: "1", To: "2"})
	if len(got) != len(names)-1 || !slices.IsSorted(got) {
		t.Errorf("%d lines: %q", len(got), got)
	}

	// Beyond the bound, as many at a time.
	var sorted []string
	for one, err := range byName(func(yield func(index.Difference, error) bool) {
		for _, name := range []npm.Name{"d", "b", "c", "a", "e"} {
			if !yield(index.Difference{New: index.Entry{Name: name}}, nil) {
				return
			}
		}
		yield(index.Difference{}, io.ErrUnexpectedEOF)
	}, 2) {
		if err != nil {
			sorted = append(sorted, err.Error())
			break
		}
		sorted = append(sorted, string(one.New.Name))
	}
	if want := []string{"b", "d", "a", "c", io.ErrUnexpectedEOF.Error()}; !slices.Equal(sorted, want) {
		t.Errorf("two at a time %q, want %q", sorted, want)
	}
}

// What is newer has to be within what each dependent asks for, and the project too.
func TestDiffOfLock(t *testing.T) {
	w := changing(t)
	table := atTable(t, w.synced())
	lock := func(specs ...string) (all []LockedVersion) {
		for _, s := range specs {
			name, version, _ := strings.Cut(s, "@")
			all = append(all, LockedVersion{Spec: npm.Spec{Name: npm.Name(name), Range: version}})
		}
		return all
	}
	ask := func(spec string) []npm.Spec { return []npm.Spec{lock(spec)[0].Spec} }
	for _, tt := range []struct {
		name, from, to string
		lock           Lock
		want           []string
	}{
		{"by a dependent", "1", "2", Lock{Packages: lock("left-pad@1.0.0", "is-odd@3.0.1")}, []string{"~ left-pad … [1.0.0  1.0.7]"}},
		{"by nobody known", "1", "2", Lock{Packages: lock("left-pad@1.0.0")}, []string{"~ left-pad … [1.0.0  1.0.7 1.4.0]"}},
		{"by the project", "1", "2", Lock{Packages: lock("left-pad@1.0.0"), Ranges: ask("left-pad@>=1.0.0")}, []string{"~ left-pad … [1.0.0  1.0.7 1.4.0 2.0.0]"}},
		{"by both", "1", "2", Lock{Packages: lock("left-pad@1.0.0", "is-odd@3.0.1"), Ranges: ask("left-pad@<1.0.7")}, []string{"~ left-pad …"}},
		{"through an alias, twice", "1", "2", Lock{Packages: lock("left-pad@1.3.0", "left-pad@1.0.0", "is-odd@3.0.1", "is-even@1.0.0")},
			[]string{"+ is-even … [1.0.0 appeared ]", "~ left-pad … [1.0.0  1.0.7] [1.3.0  1.4.0]"}},
		{"withdrawn", "2", "3", Lock{Packages: lock("left-pad@1.3.0", "left-pad@1.0.0", "is-odd@3.0.1", "is-even@1.0.0")},
			[]string{"- is-odd … [3.0.1 withdrawn ]", "~ left-pad … [1.3.0 withdrawn ]"}},
		{"never listed", "2", "3", Lock{Packages: lock("left-pad@7.7.7", "nobodys@1.0.0")}, []string{"~ left-pad … [7.7.7 unlisted ]", "= nobodys … [1.0.0 unlisted ]"}},
		{"unchanged", "2", "3", Lock{Packages: lock("is-even@1.0.0")}, nil},
		{"never listed, and unchanged", "2", "3", Lock{Packages: lock("is-even@1.0.0", "is-even@9.0.0")}, []string{"= is-even … [9.0.0 unlisted ]"}},
		{"none", "1", "3", Lock{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := diffed(t, table, DiffQuery{From: tt.from, To: tt.to, Lock: &tt.lock})
			for i, line := range got { // what is said of the package itself TestDiff has
				words, locked, _ := strings.Cut(line, " [")
				got[i] = strings.Join(strings.Fields(words)[:2], " ") + " …"
				if locked != "" {
					got[i] += " [" + locked
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// A locked version whose integrity is another than the registry's is told of whatever
// else changed, by the newer release; what cannot be compared is not.
func TestDiffOfIntegrity(t *testing.T) {
	w := changing(t)
	digests := func(name, version string) (sri, sha1 string) {
		v := (npm.Integrity{}).NewVerifier()
		v.Write(w.registry.Tarball(name, version))
		sum, err := hex.DecodeString(v.Shasum())
		check(t, err)
		return v.SRI(), "sha1-" + base64.StdEncoding.EncodeToString(sum)
	}
	right, old := digests("left-pad", "1.0.0")
	other, otherOld := digests("left-pad", "1.4.0")
	table := atTable(t, w.synced())
	for _, tt := range []struct {
		name, version, from, to, integrity string
		want                               []string
	}{
		{"the same", "1.0.0", "2", "2", right, nil},
		{"the same by SHA-1", "1.0.0", "2", "2", old, nil},
		{"one of several", "1.0.0", "2", "2", other + " " + right, nil},
		{"other", "1.0.0", "2", "2", other, []string{"= left-pad [1.0.0  ] (" + right[:9] + ", not " + other[:9] + ")"}},
		{"other by SHA-1", "1.0.0", "2", "2", otherOld, []string{"= left-pad [1.0.0  ] (" + right[:9] + ", not " + otherOld[:9] + ")"}},
		{"one of both", "1.0.0", "2", "2", right + " " + otherOld, []string{"= left-pad [1.0.0  ] (" + right[:9] + ", not " + right[:9] + ")"}},
		{"none in the lock", "1.0.0", "2", "2", "", nil},
		{"of another kind", "1.0.0", "2", "2", "sha384-" + strings.Repeat("A", 64), nil},
		{"no digest", "1.0.0", "2", "2", "sha512-x", nil},
		{"beside newer ones", "1.0.0", "1", "2", other, []string{"~ left-pad +1.0.7 +1.4.0 +2.0.0 latest:1.0.0->2.0.0 next:none->2.0.0 old:1.0.0->none [1.0.0  1.0.7 1.4.0] (" + right[:9] + ", not " + other[:9] + ")"}},
		{"only in the older release", "1.3.0", "2", "3", other, []string{"~ left-pad -1.3.0 [1.3.0 withdrawn ]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lock := Lock{Packages: []LockedVersion{{npm.Spec{Name: "left-pad", Range: tt.version}, tt.integrity}}}
			if got := diffed(t, table, DiffQuery{From: tt.from, To: tt.to, Lock: &lock}); !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// Of several registries each says what it is asked for, by days alone.
func TestDiffOfSeveral(t *testing.T) {
	one, two := newWorld(t), changing(t)
	one.history(1, 2)
	table, err := NewTable(Registry{Label: "one", Scopes: []string{"@types"}, Mirror: one.synced()}, Registry{Label: "two", Mirror: two.synced()})
	check(t, err)
	if _, _, err := table.Diff(t.Context(), DiffQuery{From: "1", To: "now"}); !errors.Is(err, ErrMoment) {
		t.Errorf("a number: %v", err)
	}
	got := diffed(t, table, DiffQuery{From: "2026-03-02", To: "now"})
	want := []string{"one + @types/node +20.0.0", "two + is-even +1.0.0", "two - is-odd -3.0.1"}
	if len(got) != 4 || !slices.Equal(got[:3], want) || !strings.HasPrefix(got[3], "two ~ left-pad ") {
		t.Errorf("%q", got)
	}
}

// A package that nobody has is said to be unknown, and the others are told of; an
// answer that breaks off is an error.
func TestDiffOfWhatIsGone(t *testing.T) {
	w := changing(t)
	m := w.synced()
	l, err := unixfs.Path(t.Context(), w, w.release, "_registry", "list", "left-pad")
	check(t, err)
	w.lose(l.CID)
	got := diffed(t, atTable(t, m), DiffQuery{From: "2", To: "3"})
	if want := []string{"- is-odd -3.0.1", "~ left-pad (versions unknown: nobody has them)"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	w.mu.Lock()
	w.node.alone = true
	w.mu.Unlock()
	got = diffed(t, atTable(t, m), DiffQuery{From: "2", To: "3"})
	if want := []string{"- is-odd -3.0.1", "~ left-pad (not read)"}; !slices.Equal(got, want) {
		t.Errorf("without a peer: %q, want %q", got, want)
	}
	for _, text := range []string{"", "{}\n", `{"compared":[]}` + "\n" + `{"package":{"name":"left-pad"}}` + "\n", `{"compared":[]}` + "\n" + `{"error":"it broke"}` + "\n", "{}\nnonsense"} {
		_, packages, err := ReadDiff(strings.NewReader(text))
		for _, failed := range orNone(packages) {
			err = errors.Join(err, failed)
		}
		if err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func orNone(all iter.Seq2[PackageDiff, error]) iter.Seq2[PackageDiff, error] {
	if all == nil {
		return func(func(PackageDiff, error) bool) {}
	}
	return all
}

// Results come in order, at most so many at once, and the first error ends it.
func TestInOrder(t *testing.T) {
	numbers := func(yield func(int, error) bool) {
		for i := range 1000 {
			if !yield(i, nil) {
				return
			}
		}
		yield(0, io.ErrUnexpectedEOF)
	}
	n := 0
	for got, err := range inOrder(t.Context(), numbers, func(_ context.Context, i int) (int, error) { return 2 * i, nil }) {
		if err != nil {
			if n != 1000 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("after %d: %v", n, err)
			}
			n++
			continue
		}
		if got != 2*n {
			t.Fatalf("%d after %d", got, n)
		}
		n++
	}
	if n != 1001 {
		t.Errorf("ended after %d", n)
	}
	for range inOrder(t.Context(), numbers, func(_ context.Context, i int) (int, error) { return i, nil }) {
		break // and nothing is left running: the test's end would tell
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	failed := 0
	for _, err := range inOrder(ctx, numbers, func(ctx context.Context, i int) (int, error) { return i, ctx.Err() }) {
		if err != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d errors", failed)
	}
}
