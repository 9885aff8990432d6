package clients

import (
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Source is one of the places that say which registry a client asks.
type Source struct {
	Where    string            `json:"where"`    // an environment variable, or a file
	Registry string            `json:"registry"` // without a slash at its end; "" where it speaks of scopes alone
	Scopes   map[string]string `json:"scopes,omitempty"`
	// Variable says that Where is an environment variable.
	Variable bool `json:"-"`
	// Only says of a client which of its versions look there; "": all that are known.
	Only string `json:"only,omitempty"`
	// Problem says why a file is not understood, which then says nothing here.
	Problem string `json:"problem,omitempty"`
}

// Sources are the places that say which registry a client asks in p, and of a scope
// which one, those first that go before the others. URLs are without user and
// password. Only what says something is in it.
func (p Place) Sources(c Client) []Source {
	l := look{p: p}
	user := Place{Home: p.Home, Getenv: p.Getenv}
	switch c {
	case NPM:
		l.variable("npm_config_registry", p.env("npm_config_registry"), "")
		l.project(NPM)
		l.file(user.file(NPM))
		if global := p.env("npm_config_globalconfig"); global != "" {
			l.file(file{global, npmrc})
		}
	case PNPM:
		l.variable("pnpm_config_registry", p.Getenv("pnpm_config_registry"), "pnpm 11 and later")
		l.variable("npm_config_registry", p.env("npm_config_registry"), "pnpm 10")
		if p.Project != "" {
			l.pnpm(filepath.Join(p.Project, "pnpm-workspace.yaml"), "")
		}
		l.pnpm(filepath.Join(p.pnpmDir(), "config.yaml"), "pnpm 11 and later")
		l.project(NPM)
		l.only(file{filepath.Join(p.pnpmDir(), "auth.ini"), npmrc}, "pnpm 11 and later")
		l.file(user.file(NPM))
	case Yarn:
		l.variable("YARN_NPM_REGISTRY_SERVER", p.Getenv("YARN_NPM_REGISTRY_SERVER"), "")
		for dir := p.Project; dir != ""; {
			l.file(file{filepath.Join(dir, ".yarnrc.yml"), yarnrcYML})
			up := filepath.Dir(dir)
			if up == dir {
				break
			}
			dir = up
		}
		l.file(user.file(Yarn))
	case Yarn1:
		for _, name := range []string{"yarn_registry", "npm_config_registry"} {
			l.variable(name, p.env(name), "")
		}
		// npm's files go before its own.
		l.project(NPM)
		l.file(user.file(NPM))
		l.project(Yarn1)
		l.file(user.file(Yarn1))
	case Bun:
		l.variable("BUN_CONFIG_REGISTRY", p.Getenv("BUN_CONFIG_REGISTRY"), "")
		l.variable("npm_config_registry", p.env("npm_config_registry"), "")
		l.project(Bun)
		l.file(user.file(Bun))
		l.project(NPM)
		l.file(user.file(NPM))
	}
	return l.found
}

// Before are those sources of a client that go before the file that Use writes in p,
// and lead elsewhere: with them the client does not do what it was told. in is p, or
// the project in which the user's configuration is looked at.
func (p Place) Before(c Client, in Place, s Settings) (others []Source) {
	ours := p.file(c).path
	for _, one := range in.Sources(c) {
		if one.Where == ours {
			break
		}
		for _, scope := range s.Scopes {
			if to := one.Scopes[scope]; to != "" && !Same(to, s.Registry) {
				others = append(others, one)
				break
			}
		}
		if len(s.Scopes) == 0 && one.Registry != "" && !Same(one.Registry, s.Registry) {
			others = append(others, one)
		}
	}
	return others
}

// Names says whether s says that something is to be looked up at a registry.
func (s Source) Names(registry string) bool {
	for _, to := range s.Scopes {
		if Same(to, registry) {
			return true
		}
	}
	return Same(s.Registry, registry)
}

// look gathers sources.
type look struct {
	p     Place
	found []Source
}

func (l *look) variable(name, value, only string) {
	if value != "" {
		if l.p.Getenv(name) == "" {
			name = strings.ToUpper(name)
		}
		l.found = append(l.found, Source{Where: name, Registry: bare(value), Variable: true, Only: only})
	}
}

func (l *look) project(c Client) {
	if l.p.Project != "" {
		l.file(l.p.file(c))
	}
}

func (l *look) file(f file) { l.only(f, "") }

func (l *look) only(f file, only string) {
	for _, s := range l.found {
		if s.Where == f.path {
			return // the home is the project
		}
	}
	raw, err := readConfig(f.path)
	if err == nil && raw == nil {
		return
	}
	var has said
	if err == nil {
		has, err = readFormat(f.format, raw, l.p.Getenv)
	}
	l.add(f.path, has, only, err)
}

// pnpm reads a file of pnpm's own.
func (l *look) pnpm(path, only string) {
	raw, err := readConfig(path)
	if err == nil && raw == nil {
		return
	}
	var file struct {
		Registry   string            `yaml:"registry"`
		Registries map[string]string `yaml:"registries"`
	}
	if err == nil {
		if err = yaml.Unmarshal(raw, &file); err != nil {
			err = plainly("YAML", err)
		}
	}
	has := said{registry: file.Registry, scopes: map[string]string{}}
	for name, to := range file.Registries {
		if name == "default" {
			has.registry = to
		} else {
			has.scopes[name] = to
		}
	}
	l.add(path, has, only, err)
}

func (l *look) add(path string, has said, only string, err error) {
	s := Source{Where: path, Registry: bare(has.registry), Only: only}
	if err != nil {
		s.Problem = err.Error()
	}
	for scope, to := range has.scopes {
		if s.Scopes == nil {
			s.Scopes = map[string]string{}
		}
		s.Scopes[scope] = bare(to)
	}
	if s.Problem != "" || s.Registry != "" || len(s.Scopes) > 0 {
		l.found = append(l.found, s)
	}
}

// pnpmDir is where pnpm keeps what is the user's (pnpm.io/cli/config).
func (p Place) pnpmDir() string {
	if dir := p.Getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "pnpm")
	}
	if runtime.GOOS == "darwin" {
		return filepath.Join(p.Home, "Library", "Preferences", "pnpm")
	}
	return filepath.Join(p.Home, ".config", "pnpm")
}

// bare is a registry's URL without user, password, and what else may be a secret.
func bare(s string) string {
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return "(no URL)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return strings.TrimRight(u.String(), "/")
}

// IsProject says whether there is a package.json in dir.
func IsProject(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, "package.json"))
	return err == nil && info.Mode().IsRegular()
}
