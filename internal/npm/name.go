package npm

import (
	"fmt"
	"strings"
)

// maxName is the longest name accepted, in bytes. npm refuses new names of more
// than 214, and has no bound for those that exist, of which a few are longer:
// the bound that is left is that a name is one legal component of a path on
// every file system.
const maxName = 255

// ParseName checks s by the rules that npm has for packages that exist already
// (validate-npm-package-name's validForOldPackages): upper case and any length
// up to 255 bytes pass, and names that begin with a period or an underscore,
// that need percent-encoding in a URL, or that npm reserves do not. A base
// name inside a scope, and the scope, may begin with an underscore, as npm
// allows; a scope may not begin with a period, as no npm user's name may. A
// name that begins with a hyphen passes, for "-" and others exist, though npm's
// newest rules refuse it. What passes is one safe path component, or two with a
// scope, and safe in a line of text. Errors wrap ErrName.
func ParseName(s string) (Name, error) {
	bad := func(why string) (Name, error) {
		if len(s) > maxName {
			s = s[:maxName] + "…"
		}
		return "", fmt.Errorf("%q: %w: %s", s, ErrName, why)
	}
	switch {
	case s == "":
		return bad("it is empty")
	case len(s) > maxName:
		return bad("it is too long")
	}
	base := s
	if s[0] == '@' {
		scope, rest, ok := strings.Cut(s[1:], "/")
		switch {
		case !ok || scope == "" || rest == "":
			return bad("a scoped name is @scope/name")
		case !urlSafe(scope):
			return bad("its scope has characters that a URL cannot carry as they are")
		case scope[0] == '.':
			return bad("its scope begins with a period")
		}
		base = rest
	}
	switch {
	case !urlSafe(base):
		return bad("it has characters that a URL cannot carry as they are")
	case base[0] == '.':
		return bad("it begins with a period")
	case s[0] == '_':
		return bad("it begins with an underscore")
	case strings.EqualFold(s, "node_modules"), strings.EqualFold(s, "favicon.ico"):
		return bad("it is reserved")
	}
	return Name(s), nil
}

// urlSafe reports whether JavaScript's encodeURIComponent leaves s as it is.
func urlSafe(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-_.!~*'()", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// Scope returns "@types" for "@types/node", and "" for a name without a scope.
func (n Name) Scope() string {
	if scope, _, ok := strings.Cut(string(n), "/"); ok {
		return scope
	}
	return ""
}

// Base returns the name without its scope.
func (n Name) Base() string {
	if _, base, ok := strings.Cut(string(n), "/"); ok {
		return base
	}
	return string(n)
}

// Escape returns the name as the one URL path segment by which npm asks for
// it: "@types%2fnode". Nothing else in a name needs escaping.
func (n Name) Escape() string { return strings.Replace(string(n), "/", "%2f", 1) }

// ParseSpec reads what a person types after "npm install", as
// npm-package-arg does: "express", "express@4", "@types/node@>=20 <23",
// "lodash@latest", or an alias "x@npm:lodash@4", which names lodash. An error
// wraps ErrSpec for git addresses, URLs, files, folders and workspaces, and
// ErrName for a name that npm refuses.
func ParseSpec(s string) (Spec, error) {
	name, rng, err := splitSpec(s)
	if err != nil {
		return Spec{}, err
	}
	return ParseDependency(name, rng)
}

// ParseDependency reads one entry of a "dependencies" field. The name in the
// result is the package's, which for an alias ("npm:real@1") is not the name
// that it is installed under. Errors are those of ParseSpec.
func ParseDependency(name, spec string) (Spec, error) {
	real, ok := cutPrefixFold(strings.TrimSpace(spec), "npm:")
	if !ok {
		return registrySpec(name, spec)
	}
	name, spec, err := splitSpec(real)
	if err != nil {
		return Spec{}, err
	}
	return registrySpec(name, spec)
}

// splitSpec cuts "name@range" at its "@" and refuses what npm would not look
// for in a registry.
func splitSpec(s string) (name, rng string, err error) {
	s = strings.TrimSpace(s)
	name = s
	if len(s) > 1 {
		if at := strings.IndexByte(s[1:], '@'); at >= 0 {
			name, rng = s[:at+1], s[at+2:]
		}
	}
	if isFile(name) || hasScheme(name) || name != "" && name[0] != '@' && strings.Contains(name, "/") {
		return "", "", fmt.Errorf("%.200q: %w", s, ErrSpec)
	}
	return name, rng, nil
}

// registrySpec checks a name and a version, range or tag.
func registrySpec(name, rng string) (Spec, error) {
	n, err := ParseName(name)
	if err != nil {
		return Spec{}, err
	}
	rng = strings.TrimSpace(rng)
	// npm tells files and hosted git ("user/repo") by their slashes and URLs
	// by their scheme; what is neither that nor a range is a tag.
	if _, ok := parseRange(rng); !ok && (!urlSafe(rng) || isFile(rng)) {
		return Spec{}, fmt.Errorf("%s@%.200q: %w", n, rng, ErrSpec)
	}
	return Spec{Name: n, Range: rng}, nil
}

// String is the spec as ParseSpec reads it.
func (s Spec) String() string {
	if s.Range == "" {
		return string(s.Name)
	}
	return string(s.Name) + "@" + s.Range
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return "", false
}

func hasScheme(s string) bool {
	scheme, _, ok := strings.Cut(s, ":")
	if !ok || scheme == "" {
		return false
	}
	for _, c := range scheme {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '+' {
			return false
		}
	}
	return true
}

// isFile reports whether npm reads s as a path before it thinks of a registry.
func isFile(s string) bool {
	if s == "" {
		return false
	}
	if s[0] == '.' || s[0] == '/' || strings.HasPrefix(s, "~/") {
		return true
	}
	low := strings.ToLower(s)
	return strings.HasSuffix(low, ".tgz") || strings.HasSuffix(low, ".tar.gz") || strings.HasSuffix(low, ".tar")
}
