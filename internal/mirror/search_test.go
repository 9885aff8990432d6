package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// publishNames signs a release of packages that have nothing but their names.
func (w *world) publishNames(names ...npm.Name) {
	ref, _ := w.dir("left-pad")
	dirs := map[string]unixfs.Ref{}
	for _, n := range names {
		dirs[string(n)] = ref
	}
	w.number++
	list, overflow := w.directory(dirs)
	root := w.buildRelease(len(names), list, list, overflow)
	w.seq++
	w.setRecord(w.sign(root, w.seq))
}

// randomNames are names of few letters, so that they have much in common.
func randomNames(rng *rand.Rand, n int) []npm.Name {
	word := func() string {
		b := make([]byte, 1+rng.IntN(3))
		for i := range b {
			b[i] = "abcAxy2"[rng.IntN(7)]
		}
		return string(b)
	}
	set := map[npm.Name]bool{}
	for range n {
		name := word()
		for rng.IntN(2) == 0 {
			name += []string{"-", ".", "_", ""}[rng.IntN(4)] + word()
		}
		if rng.IntN(2) == 0 {
			name = "@" + word() + "/" + name
		}
		if _, err := npm.ParseName(name); err == nil {
			set[npm.Name(name)] = true
		}
	}
	return sortedNames(set)
}

// naive is what a search should find among names, in order.
func naive(text string, names []npm.Name) (found []npm.Name) {
	var words []string
	scope := ""
	for _, w := range strings.Fields(strings.ToLower(text)) {
		if s, ok := strings.CutPrefix(w, "scope:"); ok {
			scope = "@" + strings.TrimPrefix(s, "@") + "/"
			continue
		}
		words = append(words, w)
	}
	rank := func(n npm.Name) int {
		name, base := strings.ToLower(string(n)), strings.ToLower(n.Base())
		if len(words) == 0 {
			return 0
		}
		var quoted []string
		starts := func(w string) bool {
			return regexp.MustCompile(`(^|[^a-z0-9])` + regexp.QuoteMeta(w)).MatchString(name)
		}
		rest := true
		for i, w := range words {
			quoted = append(quoted, regexp.QuoteMeta(w))
			rest = rest && (i == 0 || starts(w))
		}
		whole := regexp.MustCompile("^" + strings.Join(quoted, "[^a-z0-9]") + "$")
		switch {
		case whole.MatchString(name):
			return 0
		case whole.MatchString(base):
			return 1
		case rest && strings.HasPrefix(name, words[0]):
			return 2
		case rest && starts(words[0]):
			return 3
		}
		return 4
	}
	ranks := map[npm.Name]int{}
	for _, n := range names {
		name := strings.ToLower(string(n))
		if !strings.HasPrefix(name, scope) || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(name, w) }) {
			continue
		}
		found = append(found, n)
		ranks[n] = rank(n)
	}
	slices.SortFunc(found, func(a, b npm.Name) int {
		return cmp.Or(cmp.Compare(ranks[a], ranks[b]), cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	return found
}

// randomQuery is mostly a part of a name.
func randomQuery(rng *rand.Rand, names []npm.Name) string {
	part := func() string {
		n := string(names[rng.IntN(len(names))])
		i := rng.IntN(len(n))
		return n[i : i+1+rng.IntN(min(4, len(n)-i))]
	}
	switch rng.IntN(8) {
	case 0:
		return string(names[rng.IntN(len(names))])
	case 1:
		return part() + " " + part()
	case 2:
		return "scope:" + strings.TrimPrefix(names[rng.IntN(len(names))].Scope(), "@") + " " + part()
	case 3:
		return []string{"", "a", "zzz", ".*", "[a", `a\`, "@", "/", "-", "\x00", "\xff", "é", "%"}[rng.IntN(13)]
	case 4:
		return strings.ReplaceAll(names[rng.IntN(len(names))].Base(), "-", " ")
	}
	return part()
}

// finds holds a search to the naive one among names.
func finds(t *testing.T, search func(context.Context, string, int, int) (Hits, error), rng *rand.Rand, text string, names []npm.Name) {
	t.Helper()
	want := naive(text, names)
	from, size := rng.IntN(len(want)+2)*rng.IntN(2), 1+rng.IntN(30)
	got, err := search(t.Context(), text, from, size)
	check(t, err)
	total := len(want)
	want = want[min(from, maxHits, len(want)):]
	want = want[:min(size, len(want), maxHits-min(from, maxHits))]
	var shown []npm.Name
	for _, h := range got.Hits {
		shown = append(shown, h.Name)
	}
	if got.Total != total || !slices.Equal(shown, want) {
		t.Fatalf("%q from %d, %d: %q of %d; want %q of %d", text, from, size, shown, got.Total, want, total)
	}
}

func TestSearchIsTheNaiveOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	w := newWorld(t)
	names := randomNames(rng, 2000)
	w.publishNames(names...)
	m := w.synced()
	m.lines.piece = 512
	for range 200 {
		finds(t, m.Search, rng, randomQuery(rng, names), names)
	}
	if n := len(m.lines.list.starts); n < 20 {
		t.Errorf("the names were read in %d pieces", n)
	}
}

// filed writes a file of names, which are in order, to be read in pieces of that size.
func filed(t testing.TB, names []npm.Name, piece int) *nameList {
	t.Helper()
	var text []byte
	for _, n := range names {
		text = appendLine(text, n)
	}
	fs := vfs.NewMem()
	f, err := fs.Create("names", vfs.WriteCategoryUnspecified)
	check(t, err)
	row := namesRow{Size: int64(len(text)), Sum: crc32.Checksum(text, castagnoli)}
	_, err = f.Write(text) // spoils text
	check(t, errors.Join(err, f.Close()))
	l, err := readNames(fs, "names", row, piece)
	check(t, err)
	t.Cleanup(func() { check(t, l.file.Close()) })
	return l
}

// However few are asked for, and whatever came, went and is claimed, names are found as
// a plain search finds them: also those that are passed over.
func TestFindIsTheNaiveOne(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(7, 400+seed))
		all := randomNames(rng, 400)
		if seed%2 == 0 { // no line has a name twice
			lower := map[npm.Name]bool{}
			for _, n := range all {
				lower[npm.Name(strings.ToLower(string(n)))] = true
			}
			all = sortedNames(lower)
		}
		list := func() (l *nameList, listed []npm.Name) {
			var in, came, went []npm.Name
			moving := rng.IntN(2) * 100
			for _, n := range all {
				k := 100
				if rng.IntN(100) < moving {
					k = rng.IntN(5)
				}
				switch {
				case rng.IntN(3) == 0: // not of this list
					continue
				case k == 0:
					in, went = append(in, n), append(went, n)
					continue
				case k == 1:
					came = append(came, n)
				case k == 2: // a part has it too
					in, came = append(in, n), append(came, n)
				case k == 3:
					in, came, went = append(in, n), append(came, n), append(went, n)
				default:
					in = append(in, n)
				}
				listed = append(listed, n)
			}
			l = filed(t, in, 64+rng.IntN(2000))
			l.Came, l.Went = came, went
			return l, listed
		}
		one, names := list()
		w := walk{in: []shelf{{open: true}}, lists: []*nameList{one}}
		if seed%4 > 1 { // some are claimed
			other, more := list()
			var claimed []span
			claims := func(n npm.Name) bool {
				return slices.ContainsFunc(claimed, func(s span) bool { return s.has(n) })
			}
			for range 1 + rng.IntN(8) {
				n := all[rng.IntN(len(all))]
				s := spanOfName(n)
				if scope := n.Scope(); scope != "" {
					s = spanOfScope(scope)
				}
				if !claims(n) {
					claimed = append(claimed, s)
				}
			}
			slices.SortFunc(claimed, func(a, b span) int { return cmp.Compare(a.from, b.from) })
			names = slices.DeleteFunc(names, claims)
			for _, n := range more {
				if claims(n) {
					names = append(names, n)
				}
			}
			w.in[0].but = claimed
			w.in, w.lists = append(w.in, shelf{only: claimed}), append(w.lists, other)
		}
		for range 60 {
			text := randomQuery(rng, all)
			q, err := parseQuery(text)
			check(t, err)
			search := newWalk(q, w.in, rng.IntN(12))
			search.lists = w.lists
			found, total, err := search.find(t.Context())
			check(t, err)
			want := naive(text, names)
			if total != len(want) {
				t.Fatalf("seed %d: %q: %d, want %d", seed, text, total, len(want))
			}
			var shown []npm.Name
			for _, f := range found {
				shown = append(shown, f.name)
			}
			if want = want[:min(search.most, len(want))]; !slices.Equal(shown, want) {
				t.Fatalf("seed %d: %q: %q, want %q", seed, text, shown, want)
			}
		}
	}
}

// BenchmarkFind is of queries as they are typed, a letter of which is in most names. It
// gives the nanoseconds for each name; bench/index measures the whole with millions.
func BenchmarkFind(b *testing.B) {
	rng := rand.New(rand.NewPCG(7, 500))
	word := func() string {
		const consonants, vowels = "bcdfghjklmnprstvwxz", "aeiouy"
		var s []byte
		for range 1 + rng.IntN(4) {
			s = append(s, consonants[rng.IntN(len(consonants))], vowels[rng.IntN(len(vowels))], consonants[rng.IntN(len(consonants))])
		}
		return string(s)
	}
	set := map[npm.Name]bool{}
	for range 200_000 {
		name := word() + "-" + word()
		if rng.IntN(2) == 0 {
			name = "@" + word()[:3] + "/" + name
		}
		set[npm.Name(name)] = true
	}
	names := sortedNames(set)
	still := filed(b, names, namePiece)
	moved := *still
	for i := 0; i < len(names); i += 500 {
		moved.Came, moved.Went = append(moved.Came, names[i]+"-x"), append(moved.Went, names[i])
	}
	for _, text := range []string{"e", "-", "re", "reac", "e r", ""} {
		for name, l := range map[string]*nameList{"still": still, "moved": &moved} {
			b.Run(fmt.Sprintf("%q/%s", text, name), func(b *testing.B) {
				q, err := parseQuery(text)
				check(b, err)
				for b.Loop() {
					w := newWalk(q, []shelf{{}}, 20)
					w.lists = []*nameList{l}
					_, _, err := w.find(b.Context())
					check(b, err)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(names)), "ns/name")
			})
		}
	}
}

// A table finds what an install would, each name once and from its registry.
func TestSearchOfATableIsTheNaiveOne(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(7, 100+seed))
		all := randomNames(rng, 600)
		open := func(part int) (*Mirror, []npm.Name) {
			w := newWorld(t)
			var names []npm.Name
			for _, n := range all {
				if rng.IntN(part) == 0 {
					names = append(names, n)
				}
			}
			w.publishNames(names...)
			m := w.synced()
			m.lines.piece = 256 << rng.IntN(4)
			return m, names
		}
		first, _ := open(2)
		acme, _ := open(3)
		second, _ := open(2)
		third, _ := open(4)
		claims := []npm.Name{all[0], all[len(all)/2], "nobody-has-it"}
		var scopes []string
		for _, n := range all {
			if s := n.Scope(); s != "" && len(scopes) < 3 && !slices.Contains(scopes, s) && rng.IntN(20) == 0 {
				scopes = append(scopes, s)
			}
		}
		rows := []Registry{{Label: "first", Mirror: first}, {Label: "acme", Scopes: scopes, Names: claims, Mirror: acme},
			{Label: "second", Mirror: second}, {Label: "third", Mirror: third}}
		rows = rows[:4-2*(seed%2)] // with one that claims nothing, or three
		table, err := NewTable(rows...)
		check(t, err)
		var names []npm.Name
		for _, n := range all {
			if _, listed, err := table.of(n).entry(n); err != nil {
				t.Fatal(err)
			} else if listed {
				names = append(names, n)
			}
		}
		for range 60 {
			finds(t, table.Search, rng, randomQuery(rng, all), names)
		}
		hits, err := table.Search(t.Context(), "", 0, maxResults)
		check(t, err)
		labels := map[*Mirror]string{first: "first", acme: "acme", second: "second", third: "third"}
		seen := map[string]bool{}
		for _, h := range hits.Hits {
			if seen[h.Registry] = true; labels[table.of(h.Name)] != h.Registry {
				t.Errorf("%+v, and an install has it from %s", h, labels[table.of(h.Name)])
			}
		}
		if len(seen) < len(rows)-1 {
			t.Errorf("hits of %v only", seen)
		}
	}
}

// However the list moves, and whenever the mirror is started anew, a search finds
// what is in the list, and the file is made only when it must be.
func TestNamesFollowTheList(t *testing.T) {
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(7, 200+seed))
		w := newWorld(t)
		fs := vfs.NewMem()
		all := randomNames(rng, 250)
		listed := map[npm.Name]bool{}
		for _, n := range all {
			if rng.IntN(2) == 0 {
				listed[n] = true
			}
		}
		open := func() *Mirror {
			m := w.open(func(o *Options) { o.FS = fs })
			m.lines.piece, m.lines.moved = 300, 1<<10
			return m
		}
		m := open()
		var sum uint32
		for step := range 16 {
			for range rng.IntN(12) {
				n := all[rng.IntN(len(all))]
				if listed[n] = !listed[n]; !listed[n] {
					delete(listed, n)
				}
			}
			names := sortedNames(listed)
			w.publishNames(names...)
			check(t, m.Sync(t.Context()))
			if rng.IntN(5) == 0 {
				check(t, m.Close())
				m = open()
			}
			if rng.IntN(3) > 0 || step == 15 {
				for range 5 {
					finds(t, m.Search, rng, randomQuery(rng, all), names)
				}
				if sum != 0 && m.lines.list.Sum != sum {
					t.Errorf("step %d: the file was made anew", step)
				}
				sum = m.lines.list.Sum
			}
		}
		if len(m.lines.list.Came) == 0 || len(m.lines.list.Went) == 0 {
			t.Errorf("nothing came or nothing went: %d and %d", len(m.lines.list.Came), len(m.lines.list.Went))
		}
		made, err := m.writeNames(t.Context(), "again")
		check(t, err)
		again, err := readNames(fs, "again", made, 300)
		check(t, err)
		rebuilt := again.Came
		for name := range lineNames(t, again) {
			rebuilt = append(rebuilt, name)
		}
		if !slices.Equal(rebuilt, sortedNames(listed)) {
			t.Error("the names made anew are not the list's")
		}
		check(t, again.file.Close())
	}
}

// lineNames yields the names in a file.
func lineNames(t *testing.T, l *nameList) func(func(npm.Name) bool) {
	text, err := l.piece(nil, 0, l.Size)
	check(t, err)
	return func(yield func(npm.Name) bool) {
		for len(text) > 0 {
			var name []byte
			if _, name, text = firstLine(text); !yield(npm.Name(name)) {
				return
			}
		}
	}
}

// When much has come and gone the file is made anew, and a damaged one too.
func TestNamesAreMadeAnew(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 300))
	w := newWorld(t)
	fs := vfs.NewMem()
	all := randomNames(rng, 400)
	w.publishNames(all[:100]...)
	m := w.synced(func(o *Options) { o.FS = fs })
	m.lines.moved = 50
	finds(t, m.Search, rng, "a", all[:100])
	sum := m.lines.list.Sum
	w.publishNames(all[:180]...)
	check(t, m.Sync(t.Context()))
	finds(t, m.Search, rng, "a", all[:180])
	until(t, func() bool {
		m.lines.mu.RLock()
		defer m.lines.mu.RUnlock()
		return m.lines.list.Sum != sum && len(m.lines.list.Came) == 0
	})
	finds(t, m.Search, rng, "a", all[:180])
	w.publishNames(all[150:]...) // too many to follow
	check(t, m.Sync(t.Context()))
	finds(t, m.Search, rng, "a", all[150:])
	check(t, m.Close())

	f, err := fs.OpenReadWrite("mirror/names", vfs.WriteCategoryUnspecified)
	check(t, err)
	_, err = f.WriteAt([]byte("Q"), 40)
	check(t, errors.Join(err, f.Close()))
	m = w.open(func(o *Options) { o.FS = fs })
	finds(t, m.Search, rng, "a", all[150:])
	check(t, m.Close())
	check(t, fs.Remove("mirror/names"))
	m = w.open(func(o *Options) { o.FS = fs })
	finds(t, m.Search, rng, "a", all[150:])
}

// Until somebody searches there is no file of names.
func TestNoNamesUnasked(t *testing.T) {
	w := newWorld(t)
	fs := vfs.NewMem()
	w.publish("left-pad")
	m := w.synced(func(o *Options) { o.FS = fs })
	w.publish("left-pad", "is-odd")
	check(t, m.Sync(t.Context()))
	if _, err := fs.Stat("mirror/names"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a file of names: %v", err)
	}
	if hits, err := m.Search(t.Context(), "o", 0, 1); err != nil || hits.Total != 1 {
		t.Errorf("%+v, %v", hits, err)
	}
	if _, err := fs.Stat("mirror/names"); err != nil {
		t.Error(err)
	}
}

func TestSearchRefuses(t *testing.T) {
	w := newWorld(t)
	w.publish(everything...)
	m := w.synced()
	for query, want := range map[string]int{
		"text=" + strings.Repeat("x", maxQuery+1):  http.StatusBadRequest,
		"text=" + strings.Repeat("a+", maxWords+1): http.StatusBadRequest,
		"text=a&size=-1":                                  http.StatusBadRequest,
		"text=a&from=-1":                                  http.StatusBadRequest,
		"text=a&from=99999999999999999999":                http.StatusBadRequest,
		"text=a&size=2147483647&from=9223372036854775807": http.StatusOK,
		"text=" + url.QueryEscape("(a+)+$ \x00 \xff é"):   http.StatusOK,
		"text=keywords:&size=0":                           http.StatusOK,
		"text=not:unstable+is:stable+boost-exact:false":   http.StatusOK,
	} {
		if got := get(m, "/-/v1/search?"+query); got.Code != want {
			t.Errorf("%.60q: %d %s", query, got.Code, got.Body)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Search(ctx, "a", 0, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("of a client that has gone: %v", err)
	}
}

// saying is an archive whose documents have something to say.
const saying = `
-- left-pad@1.3.0/package.json --
{"name":"left-pad","version":"1.3.0","description":"Fills text up","keywords":["Align","column"],"author":{"name":"Ann Example"}}
-- is-odd@3.0.1/package.json --
{"name":"is-odd","version":"3.0.1","description":"whether a number is odd, unlike align"}
`

// What a document says is found as long as it is held, also after a start; nothing
// is fetched for who types.
func TestSearchOfWhatIsHeld(t *testing.T) {
	w := newWorldOf(t, saying)
	fs := vfs.NewMem()
	w.publish("left-pad", "is-odd")
	c := testCache(t, CacheOptions{})
	check(t, c.Stop()) // trims are ours
	open := func() *Mirror {
		return w.synced(func(o *Options) { o.FS, o.Cached = fs, c.Part("node", w.node, nil) })
	}
	m := open()
	found := func(text string, want ...npm.Name) {
		t.Helper()
		hits, err := m.Search(t.Context(), text, 0, 10)
		check(t, err)
		var names []npm.Name
		for _, h := range hits.Hits {
			names = append(names, h.Name)
		}
		if !slices.Equal(names, want) || hits.Total != len(want) {
			t.Errorf("%q: %q of %d, want %q", text, names, hits.Total, want)
		}
	}
	asked := w.node.asked()
	found("align")
	found("left", "left-pad")
	if got := get(m, "/-/v1/search?text=left").Body.String(); !strings.Contains(got, `"version":"unknown"`) {
		t.Errorf("of what is not held: %s", got)
	}
	if n := w.node.asked() - asked; n != 0 {
		t.Errorf("%d blocks were fetched for a search", n)
	}
	for _, name := range []string{"is-odd", "left-pad"} {
		if got := get(m, "/"+name); got.Code != http.StatusOK {
			t.Fatalf("%s: %d", name, got.Code)
		}
		m.wg.Wait()
		looks(t, m)
	}
	for range 2 {
		found("align", "left-pad", "is-odd") // a keyword before a part of a description
		found("ODD align", "is-odd")
		found("keywords:align,other", "left-pad")
		found("keywords:column keywords:align pad", "left-pad")
		found("keywords:colum")
		found("left", "left-pad")
		found("scope:types align")
		hits, err := m.Search(t.Context(), "left-pad", 0, 1)
		check(t, err)
		if h := hits.Hits[0]; !h.Held || h.Version != "1.3.0" || h.Description != "Fills text up" || len(h.Keywords) != 2 {
			t.Errorf("%+v", h)
		}
		m.wg.Wait()
		check(t, m.Close())
		m = open()
	}
	w.publish("is-odd")
	check(t, m.Sync(t.Context()))
	found("align", "is-odd") // the other is not listed
	w.publish("is-odd", "left-pad")
	check(t, m.Sync(t.Context()))
	found("align", "left-pad", "is-odd")

	m.wg.Wait()
	c.o.Bound = 1
	check(t, c.trim(t.Context()))
	found("align")
	found("left", "left-pad")
	check(t, m.Close())
	m = open()
	found("align")
}

// What a crash between an eviction and its row left is not found.
func TestDescriptionsOfWhatIsGone(t *testing.T) {
	w := newWorldOf(t, saying)
	w.publish("left-pad")
	c := testCache(t, CacheOptions{})
	m := w.synced(func(o *Options) { o.Cached = c.Part("node", w.node, nil) })
	file := w.docs["left-pad"]
	describe := func() error {
		s := summary{Name: "left-pad", Version: "1.0.0", Description: "align"}
		return m.describe(t.Context(), &description{Name: "left-pad", Dir: w.dirs["left-pad"], Summary: s, file: file})
	}
	isKnown := func() bool {
		_, closer, err := m.db.Get(descriptionKey(file))
		if err == nil {
			closer.Close()
		}
		return err == nil
	}
	check(t, describe()) // not in the cache
	if isKnown() {
		t.Error("it was written down")
	}
	done := m.using(t.Context(), "left-pad", file)
	check(t, describe())
	done()
	m.wg.Wait()
	if !isKnown() {
		t.Error("it was not written down")
	}
	m.described.loaded = false // as after a start
	c.mu.Lock()
	for key := range c.seen {
		check(t, c.db.Delete(append([]byte{fileSpace}, key...), nil))
	}
	clear(c.seen)
	c.mu.Unlock()
	if hits, err := m.Search(t.Context(), "align", 0, 1); err != nil || hits.Total != 0 {
		t.Errorf("%+v, %v", hits, err)
	}
	if isKnown() {
		t.Error("the row is still there")
	}
}

func TestReadURL(t *testing.T) {
	for raw, want := range map[string]string{
		`"https://example.test/a"`:                 "https://example.test/a",
		`{"url":"git+https://example.test/a.git"}`: "https://example.test/a.git",
		`"javascript:alert(1)"`:                    "",
		`"https:///x"`:                             "",
		`7`:                                        "",
		`{"url":7}`:                                "",
		fmt.Sprintf(`"https://example.test/%s"`, strings.Repeat("a", maxSaid)): "",
	} {
		if got := readURL([]byte(raw)); got != want {
			t.Errorf("%.40s: %q, want %q", raw, got, want)
		}
	}
}
