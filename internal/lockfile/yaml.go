package lockfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readYAML reads a pnpm-lock.yaml, which may have a document for pnpm itself
// before the project's, or a yarn.lock of yarn 2 and later.
func (f *File) readYAML(raw []byte) error {
	if len(raw) > maxYAML {
		return fmt.Errorf("%w: it is YAML, and larger than %d MiB", ErrFormat, maxYAML>>20)
	}
	for in := yaml.NewDecoder(bytes.NewReader(raw)); ; {
		var doc yaml.Node
		err := in.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
			return fmt.Errorf("%w: it is neither JSON nor a mapping in YAML", ErrFormat)
		}
		switch top := doc.Content[0]; {
		case field(top, "__metadata") != nil:
			err = f.addBerry(top)
		case field(top, "lockfileVersion") != nil:
			err = f.addPnpm(top)
		default:
			err = fmt.Errorf("%w: it has neither a lockfileVersion nor yarn's __metadata", ErrFormat)
		}
		if err != nil {
			return err
		}
	}
	if f.Format == "" {
		return fmt.Errorf("%w: it is empty", ErrFormat)
	}
	return nil
}

// addPnpm takes a document of a pnpm-lock.yaml. Since 6 its packages are
// "name@version", with what it was resolved beside in parentheses, and before 9
// with a slash in front (https://github.com/pnpm/spec/tree/master/lockfile).
func (f *File) addPnpm(top *yaml.Node) error {
	f.Format = "pnpm-lock.yaml"
	version := text(field(top, "lockfileVersion"))
	if major, _, _ := strings.Cut(version, "."); number(major) < 6 {
		return fmt.Errorf("%w: it is a pnpm-lock.yaml of version %.20q: pnpm 8 and later write those that are read", ErrFormat, version)
	}
	if err := f.askPnpm(top); err != nil {
		return err
	}
	return entries(field(top, "packages"), func(key string, p *yaml.Node) error {
		place := strings.TrimPrefix(key, "/")
		if open := strings.IndexByte(place, '('); open > 0 {
			place = place[:open]
		}
		resolution := field(p, "resolution")
		name, from, ok := cutName(place)
		if ok && kindOf(from) == Unknown {
			return f.addFrom(name, from, text(field(resolution, "integrity")))
		}
		// Before 9 such a key is the place alone.
		if given := text(field(p, "name")); given != "" {
			name = given
		} else if !ok {
			name = place
		}
		kind := kindOf(from)
		switch archive := text(field(resolution, "tarball")); {
		case text(field(resolution, "type")) == "git":
			kind = Git
		case archive != "":
			kind = kindOf(archive)
		case text(field(resolution, "type")) == "directory":
			kind = Local
		}
		f.Foreign = append(f.Foreign, Foreign{name, kind})
		return nil
	})
}

// askPnpm takes what the importers ask for, which are the project and its workspaces;
// before 9 a project alone is none, and says it at the top.
func (f *File) askPnpm(top *yaml.Node) error {
	specifiers := func(m *yaml.Node) (map[string]string, error) {
		of := map[string]string{}
		return of, entries(m, func(name string, at *yaml.Node) error {
			of[name] = text(field(at, "specifier"))
			return nil
		})
	}
	by := catalogs{}
	err := entries(field(top, "catalogs"), func(name string, m *yaml.Node) (err error) {
		by[name], err = specifiers(m)
		return err
	})
	if err != nil {
		return err
	}
	importer := func(_ string, m *yaml.Node) error {
		for _, kind := range []string{"dependencies", "devDependencies", "optionalDependencies"} {
			of, err := specifiers(field(m, kind))
			if err != nil {
				return err
			}
			f.ask(of, by)
		}
		return nil
	}
	if importers := field(top, "importers"); importers != nil {
		return entries(importers, importer)
	}
	return importer("", top)
}

// addBerry takes a yarn.lock of yarn 2 and later, whose entries each have the
// locator that their specs resolved to, as in "express@npm:4.18.2"
// (https://yarnpkg.com/advanced/lexicon#locator).
func (f *File) addBerry(top *yaml.Node) error {
	f.Format = "yarn.lock"
	return entries(top, func(key string, p *yaml.Node) error {
		if key == "__metadata" {
			return nil
		}
		name, from, ok := cutName(text(field(p, "resolution")))
		if !ok {
			return fmt.Errorf("%w: %.100q has no resolution", ErrFormat, key)
		}
		if strings.HasPrefix(from, "patch:") {
			return nil // of what has an entry of its own
		}
		for spec := range strings.SplitSeq(key, ", ") {
			f.askSpec(spec)
		}
		if version, ok := strings.CutPrefix(from, "npm:"); ok {
			from, _, _ = strings.Cut(version, "::") // which binds it to an archive
		}
		return f.addFrom(name, from, "")
	})
}

// entries calls do with each key and mapping of m; nil has none.
func entries(m *yaml.Node, do func(key string, value *yaml.Node) error) error {
	if m == nil {
		return nil
	}
	if m.Kind != yaml.MappingNode {
		return fmt.Errorf("%w: line %d: no mapping", ErrFormat, m.Line)
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		if key.Kind != yaml.ScalarNode || value.Kind != yaml.MappingNode {
			return fmt.Errorf("%w: line %d: no mapping", ErrFormat, key.Line)
		}
		if err := do(key.Value, value); err != nil {
			return fmt.Errorf("line %d: %w", key.Line, err)
		}
	}
	return nil
}

// field returns what m has under key, or nil. Neither follows aliases, which no
// client writes.
func field(m *yaml.Node, key string) *yaml.Node {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Kind == yaml.ScalarNode && m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// text returns a scalar as it is written, or "".
func text(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

// number returns 0 for what is none.
func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
