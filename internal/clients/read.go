package clients

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// said is what a configuration file says of registries. URLs may hold passwords.
type said struct {
	registry string // "" where it says nothing
	scopes   map[string]string
}

// readFormat reads what a file says. Whatever is not of registries may be anything.
func readFormat(f format, raw []byte, getenv func(string) string) (said, error) {
	s := said{scopes: map[string]string{}}
	switch f {
	case npmrc:
		settings, err := npm.ParseNpmrc(bytes.NewReader(raw), getenv)
		if err != nil {
			return s, err
		}
		for key, value := range settings {
			s.put(key, value)
		}
	case yarnrc:
		for line := range strings.Lines(string(raw)) {
			if line[0] == ' ' || line[0] == '\t' || line[0] == '#' {
				continue
			}
			line = strings.TrimSpace(line)
			end := strings.IndexAny(line, " \t")
			if strings.HasPrefix(line, `"`) {
				if end = strings.Index(line[1:], `"`) + 2; end == 1 {
					continue
				}
			}
			if end > 0 {
				s.put(unquote(line[:end]), unquote(line[end:]))
			}
		}
	case yarnrcYML:
		var file struct {
			Registry string `yaml:"npmRegistryServer"`
			Scopes   map[string]struct {
				Registry string `yaml:"npmRegistryServer"`
			} `yaml:"npmScopes"`
		}
		if err := yaml.Unmarshal(raw, &file); err != nil {
			return s, plainly("YAML", err)
		}
		s.registry = variables(file.Registry, getenv)
		for scope, one := range file.Scopes {
			s.scopes["@"+strings.TrimPrefix(scope, "@")] = variables(one.Registry, getenv)
		}
	case bunfig:
		var file struct {
			Install struct {
				Registry any            `toml:"registry"`
				Scopes   map[string]any `toml:"scopes"`
			} `toml:"install"`
		}
		if err := toml.Unmarshal(raw, &file); err != nil {
			return s, plainly("TOML", err)
		}
		s.registry = variables(bunURL(file.Install.Registry), getenv)
		for scope, one := range file.Install.Scopes {
			s.scopes["@"+strings.TrimPrefix(scope, "@")] = variables(bunURL(one), getenv)
		}
	}
	return s, nil
}

// plainly says that a file cannot be read without the words of the parser, which may
// repeat a token.
func plainly(what string, _ error) error { return fmt.Errorf("it is no %s that can be read", what) }

func (s *said) put(key, value string) {
	if scope, ok := strings.CutSuffix(key, ":registry"); ok && strings.HasPrefix(scope, "@") {
		s.scopes[scope] = value
	} else if key == "registry" {
		s.registry = value
	}
}

// bunURL is a registry as bun takes it: a URL, or a table that has one.
func bunURL(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case map[string]any:
		s, _ := v["url"].(string)
		return s
	}
	return ""
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// variables puts the environment's values for ${NAME}, ${NAME-default} and
// ${NAME:-default}. What is not set stays.
func variables(s string, getenv func(string) string) string {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "${")
		name, after, closed := strings.Cut(rest, "}")
		out.WriteString(before)
		if !ok || !closed {
			if ok {
				out.WriteString("${" + rest)
			}
			return out.String()
		}
		bare, standard, has := strings.Cut(name, "-")
		v := getenv(strings.TrimSuffix(strings.TrimSuffix(bare, ":"), "?"))
		switch {
		case v != "":
			out.WriteString(v)
		case has:
			out.WriteString(standard)
		case !strings.HasSuffix(bare, "?"):
			out.WriteString("${" + name + "}")
		}
		s = after
	}
}
