package npm

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"deps.dev/util/semver"
)

// Bounds of what is parsed at all. node-semver refuses versions beyond 256
// bytes; no real range comes near 4 KiB.
const (
	maxVersion = 256
	maxRange   = 4 << 10
)

// ParseVersion checks a version as the registry keeps it: three numbers, each
// at most 2^53-1, an optional prerelease (whose hyphen may be missing, as in
// npm's loose rules) and optional build metadata. No "v", no spaces, no
// wildcards. What passes is safe in a path and a URL path. Errors wrap
// ErrVersion.
func ParseVersion(s string) error {
	if _, ok := parseVersion(s); !ok {
		if len(s) > maxVersion {
			s = s[:maxVersion] + "…"
		}
		return fmt.Errorf("%q: %w", s, ErrVersion)
	}
	return nil
}

func parseVersion(s string) (*semver.Version, bool) {
	if len(s) > maxVersion {
		return nil, false
	}
	rest := s
	for i := range 3 {
		n := 0
		for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		// 2^53-1 has sixteen digits.
		if n == 0 || n > 16 || n == 16 && rest[:16] > "9007199254740991" {
			return nil, false
		}
		rest = rest[n:]
		if i < 2 {
			if rest == "" || rest[0] != '.' {
				return nil, false
			}
			rest = rest[1:]
		}
	}
	if rest != "" && rest[0] != '-' && rest[0] != '+' {
		// "1.2.3beta" is "1.2.3-beta" to npm.
		s = s[:len(s)-len(rest)] + "-" + rest
	}
	v, err := semver.NPM.Parse(s)
	if err != nil {
		return nil, false
	}
	return v, true
}

// parseRange reads a semver range. The empty string is "*". A tag, a URL and
// whatever else is no range give false.
func parseRange(s string) (*semver.Constraint, bool) {
	s = strings.TrimSpace(s)
	if len(s) > maxRange {
		return nil, false
	}
	if strings.Contains(s, "||") {
		// An empty alternative is "*" to npm and an error to deps.dev.
		alternatives := strings.Split(s, "||")
		for i, a := range alternatives {
			if strings.TrimSpace(a) == "" {
				alternatives[i] = "*"
			}
		}
		s = strings.Join(alternatives, "||")
	}
	c, err := semver.NPM.ParseConstraint(s)
	if err != nil {
		strict := loosePrerelease.ReplaceAllString(s, "$1-$2")
		if strict == s {
			return nil, false
		}
		if c, err = semver.NPM.ParseConstraint(strict); err != nil {
			return nil, false
		}
	}
	return c, true
}

// loosePrerelease finds ">=1.2.3beta", which npm reads as ">=1.2.3-beta".
var loosePrerelease = regexp.MustCompile(`((?:^|[\s^~<>=v|])\d+\.\d+\.\d+)([A-Za-z])`)

// CompareVersions orders versions by semver's precedence. What precedence
// leaves equal (build metadata) is ordered by bytes, and strings that are no
// versions come below all that are, so that the order is total.
func CompareVersions(a, b string) int {
	va, oka := parseVersion(a)
	vb, okb := parseVersion(b)
	return compareParsed(a, va, oka, b, vb, okb)
}

func compareParsed(a string, va *semver.Version, oka bool, b string, vb *semver.Version, okb bool) int {
	switch {
	case oka && okb:
		return cmp.Or(va.Compare(vb), strings.Compare(a, b))
	case oka:
		return 1
	case okb:
		return -1
	}
	return strings.Compare(a, b)
}

// IsPrerelease reports whether v is a version with a prerelease part.
func IsPrerelease(v string) bool {
	p, ok := parseVersion(v)
	return ok && p.IsPrerelease()
}

// IsRange reports whether s is a semver range or an exact version, and so not
// a dist-tag. The empty string is the range "*".
func IsRange(s string) bool {
	_, ok := parseRange(s)
	return ok
}

// Satisfies reports whether version is within rng by node-semver's rules: a
// prerelease only matches a range that names a prerelease of the same three
// numbers. A string that is no range matches nothing.
func Satisfies(version, rng string) bool {
	c, ok := parseRange(rng)
	if !ok {
		return false
	}
	v, ok := parseVersion(version)
	return ok && c.MatchVersion(v)
}

// Touches reports whether version, a prerelease or not, is within rng, or a
// prerelease of one that is: 4.17.21-rc.1 is touched by "<4.17.21" and by "4.17.21".
// It is for what a range is to keep out, where Satisfies would let prereleases pass.
func Touches(version, rng string) bool {
	c, ok := parseRange(rng)
	if !ok {
		return false
	}
	v, ok := parseVersion(version)
	if !ok || c.MatchVersionPrerelease(v) {
		return ok
	}
	of, ok := parseVersion(version[:len(version)-len(strings.TrimLeft(version, "0123456789."))])
	return ok && c.MatchVersion(of)
}

// MaxSatisfying returns the highest of versions within rng, "" where none is.
func MaxSatisfying(versions []string, rng string) string {
	c, ok := parseRange(rng)
	if !ok {
		return ""
	}
	var best string
	var bestParsed *semver.Version
	for _, s := range versions {
		v, ok := parseVersion(s)
		if !ok || !c.MatchVersion(v) {
			continue
		}
		if bestParsed == nil || compareParsed(s, v, true, best, bestParsed, true) > 0 {
			best, bestParsed = s, v
		}
	}
	return best
}

// Pick returns the version that npm would install for rng, as
// npm-pick-manifest does without regard to engines: a dist-tag means that very
// version; an exact version that one; a range means `latest` if it is within
// the range and not deprecated, else the highest version in range that is not
// deprecated, else the highest deprecated one. The empty range is "*" and so
// prefers `latest` even where that is a prerelease.
func Pick(p *Packument, rng string) (version string, ok bool) {
	rng = strings.TrimSpace(rng)
	if exact := strings.TrimLeft(rng, "=v "); exact != "" {
		if _, ok := parseVersion(exact); ok {
			_, ok = p.Versions[exact]
			return exact, ok
		}
	}
	c, isRange := parseRange(rng)
	if !isRange {
		v := p.DistTags[rng]
		_, ok := p.Versions[v]
		return v, ok
	}
	if latest, ok := p.DistTags["latest"]; ok {
		m := p.Versions[latest]
		if m != nil && m.Deprecated == "" {
			if rng == "" || rng == "*" {
				return latest, true
			}
			if v, ok := parseVersion(latest); ok && c.MatchVersion(v) {
				return latest, true
			}
		}
	}
	var best string
	var bestParsed *semver.Version
	var bestFresh bool // not deprecated
	for s, m := range p.Versions {
		v, ok := parseVersion(s)
		if !ok || !c.MatchVersion(v) {
			continue
		}
		fresh := m.Deprecated == ""
		if bestParsed == nil || fresh && !bestFresh ||
			fresh == bestFresh && compareParsed(s, v, true, best, bestParsed, true) > 0 {
			best, bestParsed, bestFresh = s, v, fresh
		}
	}
	return best, bestParsed != nil
}
