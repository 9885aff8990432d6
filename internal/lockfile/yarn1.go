package lockfile

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
)

// readYarn1 reads a yarn.lock of yarn 1, which is lines: the specs that an entry
// is for, with a colon, and its fields, indented by two
// (https://classic.yarnpkg.com/en/docs/yarn-lock).
func (f *File) readYarn1(raw []byte) error {
	f.Format = "yarn.lock"
	var e yarnEntry
	n := 0
	for line := range strings.Lines(string(raw)) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		indent := len(line) - len(strings.TrimLeft(line, " "))
		line = line[indent:]
		switch {
		case line == "" || line[0] == '#':
		case indent == 0:
			if err := f.addYarn(e); err != nil {
				return err
			}
			specs, ok := strings.CutSuffix(line, ":")
			if !ok {
				return fmt.Errorf("%w: line %d: %.100q does not end with a colon", ErrFormat, n, line)
			}
			// All of them are of one package: the first says which.
			e = yarnEntry{line: n}
			for spec := range strings.SplitSeq(specs, ", ") {
				if spec, ok = unquote(spec); !ok {
					return fmt.Errorf("%w: line %d: %.100q has a quote that does not end", ErrFormat, n, line)
				}
				e.spec = cmp.Or(e.spec, spec)
				f.askSpec(spec)
			}
		case e.line == 0:
			return fmt.Errorf("%w: line %d: it belongs to no entry", ErrFormat, n)
		case indent == 2:
			key, value, _ := strings.Cut(line, " ")
			value, ok := unquote(value)
			if !ok {
				return fmt.Errorf("%w: line %d: %.100q has a quote that does not end", ErrFormat, n, line)
			}
			switch key {
			case "version":
				e.version = value
			case "resolved":
				e.resolved = value
			case "integrity":
				e.integrity = value
			}
		}
	}
	return f.addYarn(e)
}

// yarnEntry is an entry of yarn 1, which begins at line; line 0 is none.
type yarnEntry struct {
	line                               int
	spec, version, resolved, integrity string
}

func (f *File) addYarn(e yarnEntry) error {
	if e.line == 0 {
		return nil
	}
	name, rng, ok := cutName(e.spec)
	if !ok {
		return fmt.Errorf("%w: line %d: %.100q is no package with a range", ErrFormat, e.line, e.spec)
	}
	if alias, isAlias := strings.CutPrefix(rng, "npm:"); isAlias {
		if name, rng, ok = cutName(alias); !ok {
			name, rng = alias, ""
		}
	}
	if place := e.resolved; place != "" && !fromRegistry(place) {
		// yarn writes an archive of its offline folder without a scheme.
		u, err := url.Parse(place)
		if err != nil || u.Scheme != "" || kindOf(rng) != Unknown {
			f.Foreign = append(f.Foreign, Foreign{name, kindOf(place)})
			return nil
		}
	} else if kind := kindOf(rng); kind != Unknown && place == "" {
		f.Foreign = append(f.Foreign, Foreign{name, kind})
		return nil
	}
	if err := f.addFrom(name, e.version, e.integrity); err != nil {
		return fmt.Errorf("line %d: %w", e.line, err)
	}
	return nil
}

// unquote takes the quotes off that yarn 1 writes around what has other
// characters than letters, digits and a few more. It escapes nothing that a
// name, a version or a URL has in it.
func unquote(s string) (string, bool) {
	rest, quoted := strings.CutPrefix(s, `"`)
	if !quoted {
		return s, true
	}
	return strings.CutSuffix(rest, `"`)
}
