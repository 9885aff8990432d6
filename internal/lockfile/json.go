package lockfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// entry is one of a package-lock.json.
type entry struct {
	Name      string `json:"name"`
	Version   any    `json:"version"`
	Resolved  any    `json:"resolved"` // a string; npm 6 wrote false for some
	Integrity any    `json:"integrity"`
	Link      bool   `json:"link"`
	InBundle  bool   `json:"inBundle"` // lockfile version 2 and 3
	Bundled   bool   `json:"bundled"`  // lockfile version 1
}

// oldest is an entry of lockfile version 1, which nests.
type oldest struct {
	entry
	Dependencies map[string]oldest `json:"dependencies"`
}

// asking is what the project itself or a workspace asks for, by the kinds that a client
// installs for it.
type asking struct {
	Dependencies         jsontext.Value `json:"dependencies"`
	DevDependencies      jsontext.Value `json:"devDependencies"`
	OptionalDependencies jsontext.Value `json:"optionalDependencies"`
}

func (f *File) askAll(a asking, by catalogs) error {
	for _, raw := range []jsontext.Value{a.Dependencies, a.DevDependencies, a.OptionalDependencies} {
		var of map[string]string
		if raw == nil {
			continue
		}
		if err := json.Unmarshal(raw, &of); err != nil {
			return fmt.Errorf("%w: %.100q are no dependencies", ErrFormat, raw)
		}
		f.ask(of, by)
	}
	return nil
}

// packed is an entry of "packages": of a package-lock.json, or, as a tuple, of
// a bun.lock.
type packed struct {
	entry
	asks  asking
	tuple []jsontext.Value
}

func (l *packed) UnmarshalJSONFrom(in *jsontext.Decoder) error {
	if in.PeekKind() == '[' {
		return json.UnmarshalDecode(in, &l.tuple)
	}
	var both struct {
		entry
		asking
	}
	err := json.UnmarshalDecode(in, &both)
	l.entry, l.asks = both.entry, both.asking
	return err
}

// readJSON reads a package-lock.json or a bun.lock, which has workspaces.
func (f *File) readJSON(raw []byte) error {
	raw = plainJSON(raw)
	var file struct {
		Version      any               `json:"lockfileVersion"`
		Workspaces   jsontext.Value    `json:"workspaces"`
		Catalog      map[string]string `json:"catalog"`
		Catalogs     catalogs          `json:"catalogs"`
		Packages     map[string]packed `json:"packages"`
		Dependencies map[string]oldest `json:"dependencies"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return atLine(raw, err)
	}
	switch {
	case file.Version == nil && file.Packages == nil:
		return fmt.Errorf("%w: it has neither packages nor a lockfileVersion", ErrFormat)
	case file.Workspaces != nil:
		f.Format = "bun.lock"
		for key, p := range file.Packages {
			if err := f.addBun(key, p.tuple); err != nil {
				return err
			}
		}
		by := catalogs{"default": file.Catalog}
		maps.Copy(by, file.Catalogs)
		var workspaces map[string]asking
		if err := json.Unmarshal(file.Workspaces, &workspaces); err != nil {
			return fmt.Errorf("%w: its workspaces are none", ErrFormat)
		}
		for _, w := range workspaces {
			if err := f.askAll(w, by); err != nil {
				return err
			}
		}
	case file.Packages != nil:
		f.Format = "package-lock.json"
		for path, p := range file.Packages {
			const dir = "node_modules/"
			at := strings.LastIndex(path, dir)
			if at < 0 || at > 0 && path[at-1] != '/' {
				if err := f.askAll(p.asks, nil); err != nil { // the project itself, or a workspace, which has a link
					return err
				}
				continue
			}
			name := path[at+len(dir):]
			if p.Name != "" {
				name = p.Name // of an alias
			}
			if err := f.addNPM(name, p.entry); err != nil {
				return err
			}
		}
	default:
		f.Format = "package-lock.json"
		return f.addOldest(file.Dependencies, 0)
	}
	return nil
}

// addOldest takes the entries of lockfile version 1, which nest.
func (f *File) addOldest(deps map[string]oldest, depth int) error {
	if depth > 512 {
		return fmt.Errorf("%w: it nests too deep", ErrFormat)
	}
	for name, p := range deps {
		if v, ok := p.Version.(string); ok {
			if alias, isAlias := strings.CutPrefix(v, "npm:"); isAlias {
				if real, version, ok := cutName(alias); ok {
					name, p.Version = real, version
				}
			}
		}
		if err := f.addNPM(name, p.entry); err != nil {
			return err
		}
		if err := f.addOldest(p.Dependencies, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) addNPM(name string, p entry) error {
	if p.InBundle || p.Bundled {
		return nil
	}
	version, _ := p.Version.(string)
	resolved, _ := p.Resolved.(string)
	integrity, _ := p.Integrity.(string)
	switch {
	case p.Link:
		f.Foreign = append(f.Foreign, Foreign{name, Workspace})
		return nil
	case resolved != "" && !fromRegistry(resolved):
		f.Foreign = append(f.Foreign, Foreign{name, kindOf(resolved)})
		return nil
	}
	return f.addFrom(name, version, integrity) // in version 1 a git or URL dependency has that as its version
}

// fromRegistry reports whether a "resolved" URL is one that registries give
// their tarballs: the lockfile does not otherwise tell them from tarballs by URL.
func fromRegistry(resolved string) bool {
	u, err := url.Parse(resolved)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return false
	}
	return strings.Contains(u.Path, "/-/") || strings.HasPrefix(u.Path, "/download/")
}

// addBun takes an entry of bun.lock: what it is, and for one of a registry the
// registry or the tarball, what it depends on, and its integrity
// (https://bun.com/docs/pm/lockfile).
func (f *File) addBun(key string, tuple []jsontext.Value) error {
	bad := fmt.Errorf("%w: %.100q is no entry of bun.lock", ErrFormat, key)
	var what, integrity string
	if len(tuple) == 0 || json.Unmarshal(tuple[0], &what) != nil {
		return bad
	}
	name, from, ok := cutName(what)
	if !ok {
		return bad
	}
	if last := tuple[len(tuple)-1]; len(tuple) > 1 && last.Kind() == '"' {
		if json.Unmarshal(last, &integrity) != nil {
			return bad
		}
	}
	return f.addFrom(name, from, integrity)
}

// plainJSON blanks comments, and commas before a closing bracket, out of JSON
// as bun writes it; every byte that stays is where it was.
func plainJSON(raw []byte) []byte {
	out := bytes.Clone(raw)
	blank := func(from, to int) {
		for i := from; i < to; i++ {
			if out[i] != '\n' {
				out[i] = ' '
			}
		}
	}
	comma := -1 // of which nothing but space is after
	for i := 0; i < len(out); i++ {
		rest := out[i:]
		switch c := out[i]; {
		case c == '"':
			comma = -1
			for i++; i < len(out) && out[i] != '"'; i++ {
				if out[i] == '\\' {
					i++
				}
			}
		case bytes.HasPrefix(rest, []byte("//")), bytes.HasPrefix(rest, []byte("/*")):
			end, mark := len(out), "\n"
			if rest[1] == '*' {
				mark = "*/"
			}
			if n := bytes.Index(rest[2:], []byte(mark)); n >= 0 {
				end = i + 2 + n + len(mark)
			}
			blank(i, end)
			i = end - 1
		case c == ',':
			comma = i
		case c == ']' || c == '}':
			if comma >= 0 {
				out[comma] = ' '
			}
			comma = -1
		case c != ' ' && c != '\n' && c != '\t' && c != '\r':
			comma = -1
		}
	}
	return out
}

// atLine says where in raw err is.
func atLine(raw []byte, err error) error {
	at := int64(-1)
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		at = syntax.ByteOffset
	} else if meaning, ok := errors.AsType[*json.SemanticError](err); ok {
		at = meaning.ByteOffset
		err = fmt.Errorf("%.200q is not what it is in a lockfile", string(meaning.JSONPointer)) // and no Go type
	}
	if at < 0 || at > int64(len(raw)) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return fmt.Errorf("%w: line %d: %w", ErrFormat, bytes.Count(raw[:at], []byte("\n"))+1, err)
}
