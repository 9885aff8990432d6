// Package policy says which versions of a package a registry lists: a curation
// policy, read from its rules, judges a package by the names, versions, signatures
// and first-seen times that a ledger has of it. It is pure: it is told what time it
// is, and knows nothing of ledgers, files, documents or how a list is made.
package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// ErrRule is returned for a rule that cannot be read.
var ErrRule = errors.New("not a rule of a policy")

// Rules are a policy as people write it. The zero value keeps nothing out.
//
// A pattern is npm's spec of a package, "lodash" or "lodash@<4.17.21", whose name
// may have "*", which stands for any characters but a slash: "@acme/*", "eslint-*",
// and "*" for every name without a scope. After the "@" stands a version or range of
// node-semver's, none for every version; a dist-tag, which moves, is refused.
type Rules struct {
	// Only keeps out all that none of these patterns takes; empty for nothing.
	Only []string `json:"only,omitempty"`
	// Except keeps out what one of these takes, and prereleases of it: of
	// "lodash@<4.17.21" 4.17.21-rc.1 too.
	Except []string `json:"except,omitempty"`
	// Signatures is "require", for which npm.Verified alone is enough, or
	// "prefer" or "", which keep nothing out: what has a wrong one is not stored.
	Signatures string `json:"signatures,omitempty"`
	// MinAge keeps out what was first seen less than that ago, or nobody knows
	// when: Go's durations, and days, "3d" or "1d12h". At most ten years.
	MinAge string `json:"min-age,omitempty"`
	// MinAgeExcept are patterns of what need not be that old.
	MinAgeExcept []string `json:"min-age-except,omitempty"`
}

// The reasons for which a version is withheld: the rule's key.
const (
	ReasonOnly       = "only"
	ReasonExcept     = "except"
	ReasonSignatures = "signatures"
	ReasonMinAge     = "min-age"
)

// Policy judges packages. The zero value, and nil, keep nothing out. It may be used
// concurrently.
type Policy struct {
	rules        Rules // in canonical form
	only, except patterns
	signed       bool
	minAge       time.Duration
	minAgeExcept patterns
}

// maxAge bounds a minimal age, and maxPatterns a list of patterns.
const (
	maxAge      = 3653 * 24 * time.Hour
	maxPatterns = 100_000
)

// Parse reads rules. Errors wrap ErrRule and name the rule.
func Parse(r Rules) (*Policy, error) {
	p := &Policy{}
	for _, list := range []struct {
		key  string
		from []string
		to   *patterns
		kept *[]string
	}{
		{ReasonOnly, r.Only, &p.only, &p.rules.Only},
		{ReasonExcept, r.Except, &p.except, &p.rules.Except},
		{"min-age-except", r.MinAgeExcept, &p.minAgeExcept, &p.rules.MinAgeExcept},
	} {
		if err := list.to.parse(list.from, list.kept); err != nil {
			return nil, fmt.Errorf("%s: %w", list.key, err)
		}
	}
	switch r.Signatures {
	case "", "prefer":
	case "require":
		p.signed, p.rules.Signatures = true, r.Signatures
	default:
		return nil, fmt.Errorf("signatures: %w: %.40q is neither require nor prefer", ErrRule, r.Signatures)
	}
	if r.MinAge != "" {
		var err error
		if p.minAge, err = parseAge(r.MinAge); err != nil {
			return nil, fmt.Errorf("min-age: %w", err)
		}
	}
	switch {
	case p.minAge > 0:
		p.rules.MinAge = p.minAge.String()
	case len(r.MinAgeExcept) > 0:
		return nil, fmt.Errorf("min-age-except: %w: there is no min-age that it could be an exception of", ErrRule)
	}
	return p, nil
}

// parseAge reads "3d", "36h" or "1d12h".
func parseAge(s string) (time.Duration, error) {
	bad := fmt.Errorf("%w: %.40q is no age, like 3d or 36h", ErrRule, s)
	var age time.Duration
	rest := s
	if days, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, bad
		}
		age, rest = time.Duration(n)*24*time.Hour, after
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 {
			return 0, bad
		}
		age += min(d, maxAge+1)
	}
	if age > maxAge {
		return 0, fmt.Errorf("%w: %s is more than ten years", ErrRule, s)
	}
	return age, nil
}

// Decode reads what Canonical gave. Errors wrap ErrRule.
func Decode(canonical string) (*Policy, error) {
	if canonical == "" {
		return &Policy{}, nil
	}
	var r Rules
	if err := json.Unmarshal([]byte(canonical), &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRule, err)
	}
	return Parse(r)
}

// Canonical is the one text of all policies that judge by the same rules: JSON of
// Rules, with each list sorted and each pattern once; "" for one that keeps nothing
// out.
func (p *Policy) Canonical() string {
	if p == nil {
		return ""
	}
	raw, err := json.Marshal(p.rules, json.Deterministic(true))
	if err != nil {
		panic(err) // strings alone
	}
	if string(raw) == "{}" {
		return ""
	}
	return string(raw)
}

// Hash tells policies apart: "sha256:" and the hex digest of Canonical.
func (p *Policy) Hash() string {
	sum := sha256.Sum256([]byte(p.Canonical()))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Version is what is known of a version. Integrity has no say: what is not what it
// should be is in no ledger.
type Version struct {
	Version   string
	FirstSeen time.Time // by the ledger's own clock; zero where nobody knows
	Signature npm.Verdict
}

// Withheld says why a version is kept out.
type Withheld struct {
	Version string `json:"version"`
	Reason  string `json:"reason"`
	Detail  string `json:"detail"`
}

// Verdict is what a policy makes of a package.
type Verdict struct {
	// Withheld are kept out, in the order in which the versions came.
	Withheld []Withheld
	// Due is when the first of them comes of age; zero where none will by itself.
	Due time.Time
}

// Keeps says whether a version is in the list.
func (v Verdict) Keeps(version string) bool {
	return !slices.ContainsFunc(v.Withheld, func(w Withheld) bool { return w.Version == version })
}

// Takes says whether Only has a pattern for a package of that name. Of one that it
// does not take no version is ever listed, and nobody needs to look at those.
func (p *Policy) Takes(name npm.Name) bool {
	return p == nil || len(p.rules.Only) == 0 || p.only.name(name)
}

// Judge says which versions of a package are kept out, each by the first rule that
// does, in the order of Rules. It depends on its arguments alone.
func (p *Policy) Judge(name npm.Name, versions []Version, now time.Time) Verdict {
	var v Verdict
	if p == nil {
		return v
	}
	withhold := func(version, reason, format string, args ...any) {
		v.Withheld = append(v.Withheld, Withheld{version, reason, fmt.Sprintf(format, args...)})
	}
	only, except, free := p.only.of(name), p.except.of(name), p.minAgeExcept.of(name)
	for _, one := range versions {
		if _, taken := only.match(one.Version, npm.Satisfies); !taken && len(p.rules.Only) > 0 {
			withhold(one.Version, ReasonOnly, "no pattern of only takes it")
			continue
		}
		if by, taken := except.match(one.Version, npm.Touches); taken {
			withhold(one.Version, ReasonExcept, "%s takes it", by)
			continue
		}
		if p.signed && one.Signature != npm.Verified {
			withhold(one.Version, ReasonSignatures, "its signature: %s", cmp.Or(one.Signature, npm.Unchecked))
			continue
		}
		if p.minAge == 0 {
			continue
		}
		if _, taken := free.match(one.Version, npm.Satisfies); taken {
			continue
		}
		if one.FirstSeen.IsZero() {
			withhold(one.Version, ReasonMinAge, "nobody knows when it was first seen")
			continue
		}
		if of := one.FirstSeen.Add(p.minAge); now.Before(of) {
			withhold(one.Version, ReasonMinAge, "until %s", of.UTC().Format(time.RFC3339))
			if v.Due.IsZero() || of.Before(v.Due) {
				v.Due = of
			}
		}
	}
	return v
}

// pattern is one of a list.
type pattern struct {
	text string
	rng  string // "" for every version
}

// patterns are a list of them: exact names, and those with a "*".
type patterns struct {
	exact map[npm.Name][]pattern
	wild  []wildcard
}

type wildcard struct {
	name string
	pattern
}

func (l *patterns) parse(from []string, canonical *[]string) error {
	if len(from) > maxPatterns {
		return fmt.Errorf("%w: %d patterns, %d are allowed", ErrRule, len(from), maxPatterns)
	}
	specs := map[string]npm.Spec{}
	for _, text := range from {
		s, err := npm.ParseSpec(text)
		if err == nil && strings.Contains(text, "npm:") {
			err = errors.New("it is an alias")
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w: %w", text, ErrRule, err)
		}
		if s.Range != "" && !npm.IsRange(s.Range) {
			return fmt.Errorf("%.200q: %w: %s is no version or range", text, ErrRule, s.Range)
		}
		specs[s.String()] = s
	}
	for _, text := range slices.Sorted(maps.Keys(specs)) {
		*canonical = append(*canonical, text)
		s := specs[text]
		one := pattern{text, s.Range}
		if strings.Contains(string(s.Name), "*") {
			l.wild = append(l.wild, wildcard{string(s.Name), one})
			continue
		}
		if l.exact == nil {
			l.exact = map[npm.Name][]pattern{}
		}
		l.exact[s.Name] = append(l.exact[s.Name], one)
	}
	return nil
}

func (w wildcard) matches(name npm.Name) bool {
	ok, err := path.Match(w.name, string(name)) // of "*" alone: no other character of path.Match is in a name
	return ok && err == nil
}

func (l *patterns) name(name npm.Name) bool {
	if l.exact[name] != nil {
		return true
	}
	return slices.ContainsFunc(l.wild, func(w wildcard) bool { return w.matches(name) })
}

// ranges are the patterns of one name.
type ranges []pattern

func (l *patterns) of(name npm.Name) ranges {
	all := slices.Clip(l.exact[name])
	for _, w := range l.wild {
		if w.matches(name) {
			all = append(all, w.pattern)
		}
	}
	return all
}

// match gives the first that takes version, in the form that within says.
func (r ranges) match(version string, within func(version, rng string) bool) (string, bool) {
	for _, one := range r {
		if one.rng == "" || within(version, one.rng) {
			return one.text, true
		}
	}
	return "", false
}
