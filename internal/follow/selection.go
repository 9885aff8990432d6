package follow

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/lockfile"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// Selection is how people say what they want.
type Selection struct {
	Specs     []string // "express", "express@4", "@types/node@latest"
	Lockfiles []string // paths of lockfiles, of any client
	Lists     []string // paths of files with a spec a line; # begins a comment
	Scopes    []string // "@types": every package of a scope
	All       bool     // every package of the feed
	Every     bool     // every version in range, not npm's one choice
	NoDeps    bool     // without dependencies
	Newest    int      // of what All, Scopes and Every select only the newest so many
	Days      int      // … only what was published within so many days
	Known     bool     // documents only
}

// ErrSelection is returned by Wants for what cannot be meant.
var ErrSelection = errors.New("not a selection")

// maxListLine bounds a line of a list, in bytes.
const maxListLine = 4 << 10

// Wants reads the files and checks every spec. A lockfile names its whole
// closure, so exactly the versions in it are wanted, and nothing beside. A spec
// that is also named in another way is wanted in that wider way: of equal specs
// the ledger keeps the last.
func (s Selection) Wants() ([]ledger.Want, error) {
	if s.Newest < 0 || s.Days < 0 {
		return nil, fmt.Errorf("%w: a bound below zero", ErrSelection)
	}
	if bounded := s.Newest > 0 || s.Days > 0; bounded && !s.Every && !s.All && len(s.Scopes) == 0 {
		return nil, fmt.Errorf("%w: a bound on versions goes with every version, a scope or all packages", ErrSelection)
	}
	var wants []ledger.Want
	add := func(text string) error {
		spec, err := npm.ParseSpec(text)
		if err != nil {
			return err
		}
		w := ledger.Want{Spec: spec, Every: s.Every, NoDeps: s.NoDeps, Known: s.Known}
		if s.Every {
			w.Newest, w.Days = s.Newest, s.Days
		}
		wants = append(wants, w)
		return nil
	}
	for _, path := range s.Lockfiles {
		f, err := lockfile.Open(path)
		if err != nil {
			return nil, err
		}
		for _, spec := range f.Specs() {
			wants = append(wants, ledger.Want{Spec: spec, Exact: true})
		}
	}
	whole := ledger.Want{Every: true, NoDeps: true, Newest: s.Newest, Days: s.Days, Known: s.Known}
	if s.All {
		wants = append(wants, whole)
	}
	for _, scope := range s.Scopes {
		scope = strings.TrimSuffix(strings.TrimSuffix(scope, "*"), "/")
		if _, err := npm.ParseName(scope + "/x"); err != nil || !strings.HasPrefix(scope, "@") {
			return nil, fmt.Errorf("%.100q is no scope, like @types: %w", scope, ErrSelection)
		}
		w := whole
		w.Scope = scope
		wants = append(wants, w)
	}
	for _, text := range s.Specs {
		if err := add(text); err != nil {
			return nil, err
		}
	}
	for _, path := range s.Lists {
		if err := readList(path, add); err != nil {
			return nil, err
		}
	}
	return wants, nil
}

func readList(path string, add func(string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read list: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxListLine)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if err := add(text); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read list %s: %w", path, err)
	}
	return nil
}
