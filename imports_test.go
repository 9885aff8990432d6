package registrymirror

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/registry-mirror/registry-mirror/"

// allowed says which packages of ours each package may import: the graph runs
// one way, from commands over loops and stores to pure packages. The follower
// and the mirror cannot reach a private key.
var allowed = map[string][]string{
	// pure
	"internal/npm":        {},
	"internal/unixfs":     {},
	"internal/document":   {},
	"internal/ipnsrecord": {},
	"internal/socket":     {},
	"internal/cli":        {},
	"internal/damage":     {},
	"internal/crowd":      {},
	"internal/lockfile":   {"internal/npm"},
	"internal/policy":     {"internal/npm"},
	// stores and clients
	"internal/couch":    {},
	"internal/ledger":   {"internal/damage", "internal/npm", "internal/socket"},
	"internal/upstream": {"internal/npm"},
	"internal/resolve":  {"internal/npm"},
	"internal/clients":  {"internal/npm"},
	"internal/ipfs":     {"internal/damage", "internal/unixfs", "internal/socket"},
	"internal/route":    {"internal/ipfs", "internal/ipnsrecord"},
	"index":             {"internal/damage", "internal/npm", "internal/unixfs"},
	"ipnskeys":          {"internal/ipnsrecord"},
	// loops
	"internal/hosted":  {"internal/document", "internal/ledger", "internal/npm", "internal/unixfs"},
	"internal/follow":  {"internal/couch", "internal/document", "internal/ledger", "internal/lockfile", "internal/npm", "internal/resolve", "internal/unixfs", "internal/upstream", "internal/ipfs"},
	"internal/publish": {"index", "internal/document", "internal/ipfs", "internal/ipnsrecord", "internal/ledger", "internal/npm", "internal/policy", "internal/route", "internal/unixfs", "ipnskeys"},
	"internal/mirror":  {"index", "internal/crowd", "internal/damage", "internal/document", "internal/ipfs", "internal/ipnsrecord", "internal/npm", "internal/unixfs"},
	// what people see of a mirror
	"internal/page": {"internal/mirror", "internal/npm"},
	// the state directory that the commands share
	"internal/state": {"internal/ipfs", "internal/ledger", "internal/npm", "internal/socket", "internal/upstream"},
	// commands: what each may not import is said below
	"cmd/follower":        nil,
	"cmd/publisher":       nil,
	"cmd/registry-mirror": nil,
}

// keyless are the packages from which no chain of imports may lead to
// ipnskeys. cmd/registry-mirror is not among them for the sake of `up`.
var keyless = []string{"cmd/follower", "internal/follow", "internal/hosted", "internal/mirror", "internal/page", "internal/state", "index", "internal/ipfs"}

// testSupport are imported by tests and by the commands that serve tests.
var testSupport = []string{"internal/cli/clitest", "internal/couch/couchtest", "internal/loopback", "internal/npm/npmtest", "internal/ipfs/kubod", "internal/ipfs/kubotest", "bench/", "test/"}

func TestImports(t *testing.T) {
	graph := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		if dir == "." {
			return nil
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if own, ok := strings.CutPrefix(name, module); ok {
				graph[dir] = append(graph[dir], own)
			}
		}
		if graph[dir] == nil {
			graph[dir] = []string{}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(graph) < 10 {
		t.Fatalf("found only %d packages: is the test run from the module's root?", len(graph))
	}
	for _, dir := range slices.Sorted(maps.Keys(graph)) {
		if slices.ContainsFunc(testSupport, func(s string) bool { return strings.HasPrefix(dir, s) }) {
			continue
		}
		may, known := allowed[dir]
		if !known {
			t.Errorf("%s is not in the imports test: say what it may import", dir)
			continue
		}
		for _, to := range graph[dir] {
			if strings.HasPrefix(to, "cmd/") || slices.ContainsFunc(testSupport, func(s string) bool { return strings.HasPrefix(to, s) }) {
				t.Errorf("%s imports %s", dir, to)
			}
			if may != nil && !slices.Contains(may, to) {
				t.Errorf("%s imports %s, which the one-way graph does not allow", dir, to)
			}
		}
	}
	for dir := range allowed {
		if _, ok := graph[dir]; !ok {
			t.Errorf("%s is in the imports test but not in the tree", dir)
		}
	}
	for _, dir := range keyless {
		if path := chain(graph, dir, "ipnskeys"); path != nil {
			t.Errorf("a private key can be reached: %s", strings.Join(path, " -> "))
		}
	}
}

// chain returns a path of imports from one package to another, or nil.
func chain(graph map[string][]string, from, to string) []string {
	seen := map[string]bool{}
	var walk func(string) []string
	walk = func(at string) []string {
		if at == to {
			return []string{at}
		}
		if seen[at] {
			return nil
		}
		seen[at] = true
		for _, next := range graph[at] {
			if path := walk(next); path != nil {
				return append([]string{at}, path...)
			}
		}
		return nil
	}
	return walk(from)
}
