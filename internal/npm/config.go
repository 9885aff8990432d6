package npm

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// ErrConfig is returned for npm configuration that names no usable registry.
var ErrConfig = errors.New("not a usable npm configuration")

// npm's own domains: the registry is below the first, the replicate service
// below the second.
const (
	registryDomain = "npmjs.org"
	serviceDomain  = "npmjs.com"
)

// DefaultRegistry is npm's public registry, without a slash at its end.
func DefaultRegistry() string { return "https://registry." + registryDomain }

// DefaultFeed is the database of npm's replicate service: its root document is
// there, the feed at "/_changes" below. No slash at its end.
func DefaultFeed() string { return "https://replicate." + serviceDomain + "/registry" }

// maxNpmrc bounds one configuration file, in bytes.
const maxNpmrc = 1 << 20

// Config is what npm's own configuration says of registries. It holds
// credentials: formatting and logging it shows none.
type Config struct {
	// Registry is the default registry, absolute, without a slash at its end.
	Registry string
	// Scopes maps "@scope" to the registry that it is bound to, in the same form.
	Scopes map[string]string
	// credentials are Authorization headers by "//host[:port]/path/".
	credentials map[string]string
}

// LoadConfig reads npm's configuration as npm does, the first that says
// something winning: the environment (npm_config_registry, in any case of
// letters that getenv answers to, lower or upper), the project's .npmrc in
// dir, the user's (npm_config_userconfig, else .npmrc in home), the global one (npm_config_globalconfig,
// where set), else npm's public registry. ${VAR} in a file is expanded. Files
// that do not exist say nothing. dir or home may be "". Errors wrap ErrConfig or
// are those of reading a file.
func LoadConfig(getenv func(string) string, dir, home string) (Config, error) {
	env := func(key string) string {
		for _, k := range []string{"npm_config_" + key, "NPM_CONFIG_" + strings.ToUpper(key)} {
			if v := getenv(k); v != "" {
				return v
			}
		}
		return ""
	}
	user := env("userconfig")
	if user == "" && home != "" {
		user = filepath.Join(home, ".npmrc")
	}
	var files []string
	if dir != "" {
		files = append(files, filepath.Join(dir, ".npmrc"))
	}
	for _, f := range []string{user, env("globalconfig")} {
		if f != "" && (len(files) == 0 || f != files[0]) {
			files = append(files, f)
		}
	}
	settings := map[string]string{}
	set := func(key, value string) {
		if _, ok := settings[key]; !ok {
			settings[key] = value
		}
	}
	if v := env("registry"); v != "" {
		set("registry", v)
	}
	for _, file := range files {
		if err := readNpmrc(file, getenv, set); err != nil {
			return Config{}, err
		}
	}
	c := Config{Registry: DefaultRegistry(), Scopes: map[string]string{}, credentials: map[string]string{}}
	for key, value := range settings {
		scope, isScope := strings.CutSuffix(key, ":registry")
		isScope = isScope && strings.HasPrefix(scope, "@")
		if key != "registry" && !isScope {
			continue
		}
		registry, err := ParseRegistry(value)
		if err != nil {
			return Config{}, fmt.Errorf("npm setting %s: %w", key, err)
		}
		if isScope {
			c.Scopes[scope] = registry
		} else {
			c.Registry = registry
		}
	}
	c.readCredentials(settings)
	return c, nil
}

// ParseRegistry checks the URL of a registry: absolute, http or https, with no
// user, query or fragment. It returns it without a slash at its end.
func ParseRegistry(s string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(s))
	switch {
	case err != nil:
		// The URL may hold a password, so it is not repeated.
		return "", fmt.Errorf("%w: the registry is not a URL", ErrConfig)
	case u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return "", fmt.Errorf("%w: the registry is not an absolute http or https URL", ErrConfig)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%w: the registry's URL has a user, query or fragment", ErrConfig)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// readNpmrc calls set for each key of the ini file, which may be missing.
func readNpmrc(file string, getenv func(string) string, set func(key, value string)) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read npm configuration: %w", err)
	}
	defer f.Close()
	settings, err := ParseNpmrc(f, getenv)
	if err != nil {
		return fmt.Errorf("read npm configuration %s: %w", file, err)
	}
	for key, value := range settings {
		set(key, value)
	}
	return nil
}

// ParseNpmrc reads an .npmrc, of at most 1 MiB, as npm does: up to the first section,
// the last line of each key counting, ${VAR} expanded. It may hold credentials. Errors
// wrap ErrConfig or are those of reading r.
func ParseNpmrc(r io.Reader, getenv func(string) string) (map[string]string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxNpmrc+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxNpmrc {
		return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrConfig, maxNpmrc)
	}
	settings := map[string]string{}
	for line := range strings.Lines(strings.TrimPrefix(string(raw), "\ufeff")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			break
		}
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		settings[expand(unquoteIni(key), getenv)] = expand(unquoteIni(value), getenv)
	}
	return settings, nil
}

func unquoteIni(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	// An unescaped ";" or "#" begins a comment, as in npm's ini.
	for i := range len(s) {
		if (s[i] == ';' || s[i] == '#') && (i == 0 || s[i-1] != '\\') {
			return strings.TrimSpace(s[:i])
		}
	}
	return s
}

var variable = regexp.MustCompile(`\\*\$\{([^${}]+)\}`)

// expand replaces ${VAR} by the environment's value. An unset one stays as it
// is, "${VAR?}" becomes empty, and a backslash before it keeps it.
func expand(s string, getenv func(string) string) string {
	return variable.ReplaceAllStringFunc(s, func(m string) string {
		dollar := strings.IndexByte(m, '$')
		if dollar%2 == 1 {
			return m[(dollar+1)/2:]
		}
		name := m[dollar+2 : len(m)-1]
		name, optional := strings.CutSuffix(name, "?")
		v := getenv(name)
		if v == "" && !optional {
			return m
		}
		return m[:dollar/2] + v
	})
}

// readCredentials turns "//host/path/:_authToken" and its kind into
// Authorization headers.
func (c *Config) readCredentials(settings map[string]string) {
	for key, value := range settings {
		at := strings.LastIndexByte(key, ':')
		if !strings.HasPrefix(key, "//") || at < 0 || value == "" {
			continue
		}
		place := strings.ToLower(strings.TrimRight(key[:at], "/")) + "/"
		if slash := strings.IndexByte(key[2:at], '/'); slash >= 0 {
			// Only the host is free of case.
			place = strings.ToLower(key[:2+slash]) + strings.TrimRight(key[2+slash:at], "/") + "/"
		}
		switch key[at+1:] {
		case "_authToken":
			c.credentials[place] = "Bearer " + value
		case "_auth":
			if _, ok := settings[key[:at]+":_authToken"]; !ok {
				c.credentials[place] = "Basic " + value
			}
		case "_password":
			user := settings[key[:at]+":username"]
			password, err := base64.StdEncoding.DecodeString(value)
			_, token := settings[key[:at]+":_authToken"]
			_, auth := settings[key[:at]+":_auth"]
			if user != "" && err == nil && !token && !auth {
				c.credentials[place] = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+string(password)))
			}
		}
	}
}

// RegistryFor returns the registry that holds name: its scope's, where the scope is bound
// to one, else the default.
func (c Config) RegistryFor(name Name) string {
	if r, ok := c.Scopes[name.Scope()]; ok && name.Scope() != "" {
		return r
	}
	if c.Registry == "" {
		return DefaultRegistry()
	}
	return strings.TrimRight(c.Registry, "/")
}

// Authorization returns the Authorization header for a request to rawURL, ""
// where the configuration has none for its host and port at that path or above.
func (c Config) Authorization(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || len(c.credentials) == 0 {
		return ""
	}
	path := u.EscapedPath()
	for {
		path = strings.TrimRight(path, "/")
		if h, ok := c.credentials["//"+strings.ToLower(u.Host)+path+"/"]; ok {
			return h
		}
		slash := strings.LastIndexByte(path, '/')
		if slash < 0 {
			return ""
		}
		path = path[:slash]
	}
}

// String shows no credentials.
func (c Config) String() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "registry %s, %d scopes, %d credentials", c.Registry, len(c.Scopes), len(c.credentials))
	return b.String()
}

// GoString is String, so that %#v shows no credentials either.
func (c Config) GoString() string { return c.String() }

// LogValue is String for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }
