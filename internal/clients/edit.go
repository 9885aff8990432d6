package clients

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Settings are what a client is to use.
type Settings struct {
	Registry string   // absolute URL, without a slash at its end
	Scopes   []string // "@acme": these alone are to be looked up there; none: everything
	// Portable has npm leave the address of the registry out of its lockfiles.
	Portable bool
}

// set makes a file say s and nothing else of ours. Errors wrap ErrEdit.
func set(f format, text string, there bool, s Settings) (string, error) {
	old := restore(f, text)
	made := !there || old.made
	lines := strings.SplitAfter(old.text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	var err error
	switch f {
	case npmrc:
		lines = setNpmrc(lines, made, s)
	case yarnrc:
		lines = setYarnrc(lines, made, s)
	case yarnrcYML:
		lines, err = setYarnrcYML(lines, made, s)
	case bunfig:
		lines, err = setBunfig(lines, made, s)
	}
	if err != nil {
		return "", err
	}
	out := strings.Join(lines, "")
	// What the file now says is read as the client does, not believed.
	said, err := readFormat(f, []byte(out), func(string) string { return "" })
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrEdit, err)
	}
	for _, scope := range s.Scopes {
		if !Same(said.scopes[scope], s.Registry) {
			return "", fmt.Errorf("%w: it would not say that %s is at the mirror", ErrEdit, scope)
		}
	}
	if len(s.Scopes) == 0 && !Same(said.registry, s.Registry) {
		return "", fmt.Errorf("%w: it would not name the mirror", ErrEdit)
	}
	return out, nil
}

// Same says whether two URLs name one registry. localhost is 127.0.0.1, where the
// commands listen on both.
func Same(a, b string) bool {
	plain := func(s string) string {
		return strings.Replace(strings.TrimRight(s, "/"), "://localhost:", "://127.0.0.1:", 1)
	}
	return plain(a) == plain(b)
}

// setNpmrc writes before the first section, where npm's settings end. Of several lines
// with one key the last counts, so none has to make way.
func setNpmrc(lines []string, made bool, s Settings) []string {
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "[") })
	if at < 0 {
		at = len(lines)
	}
	var b block
	for _, scope := range s.Scopes {
		b.lines = append(b.lines, scope+":registry="+s.Registry+"/")
	}
	if len(s.Scopes) == 0 {
		b.lines = append(b.lines, "registry="+s.Registry+"/")
	}
	if s.Portable {
		b.lines = append(b.lines, "omit-lockfile-registry-resolved=true")
	}
	return splice(lines, at, b, made)
}

// setYarnrc writes at the end: there, too, the last line counts.
func setYarnrc(lines []string, made bool, s Settings) []string {
	var b block
	for _, scope := range s.Scopes {
		b.lines = append(b.lines, fmt.Sprintf("%q %q", scope+":registry", s.Registry+"/"))
	}
	if len(s.Scopes) == 0 {
		b.lines = append(b.lines, fmt.Sprintf("registry %q", s.Registry+"/"))
	}
	return splice(lines, len(lines), b, made)
}

var (
	yamlServer    = regexp.MustCompile(`^["']?npmRegistryServer["']?\s*:`)
	yamlWhitelist = regexp.MustCompile(`^["']?unsafeHttpWhitelist["']?\s*:\s*(.*)$`)
	yamlScopes    = regexp.MustCompile(`^["']?npmScopes["']?\s*:\s*(#.*)?$`)
	yamlItem      = regexp.MustCompile(`^(\s*)-\s`)
	yamlFlow      = regexp.MustCompile(`^\[(.*)\]\s*(#.*)?$`)
)

// setYarnrcYML gives keys that are there another value in their place: a second one of
// the same name is no YAML.
func setYarnrcYML(lines []string, made bool, s Settings) ([]string, error) {
	if slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "...") || strings.HasPrefix(l, "--- ") }) {
		return nil, fmt.Errorf("%w: it is more than one YAML document", ErrEdit)
	}
	u, err := url.Parse(s.Registry)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEdit, err)
	}
	var rest []string // what goes to the end, in one block
	if len(s.Scopes) == 0 {
		line := "npmRegistryServer: " + strconv.Quote(s.Registry)
		if at, n := yamlEntry(lines, yamlServer); at >= 0 {
			lines = splice(lines, at, block{kept: slices.Clone(lines[at : at+n]), lines: []string{line}}, made)
		} else {
			rest = append(rest, line)
		}
	} else {
		at, n := yamlEntry(lines, yamlScopes)
		indent := "  "
		if at >= 0 && n > 1 {
			first := lines[at+1]
			indent = first[:len(first)-len(strings.TrimLeft(first, " "))]
		}
		if indent == "" {
			return nil, fmt.Errorf("%w: npmScopes is not written as is usual", ErrEdit)
		}
		var scopes []string
		for _, scope := range s.Scopes {
			scopes = append(scopes, strconv.Quote(strings.TrimPrefix(scope, "@"))+":", "  npmRegistryServer: "+strconv.Quote(s.Registry))
		}
		if at >= 0 {
			lines = splice(lines, at+1, block{indent: indent, lines: scopes}, made)
		} else {
			rest = append(rest, "npmScopes:")
			for _, l := range scopes {
				rest = append(rest, indent+l)
			}
		}
	}
	// Without this yarn speaks no http, not even to this machine.
	if host := u.Hostname(); u.Scheme == "http" {
		entry := strconv.Quote(host)
		at, n := yamlEntry(lines, yamlWhitelist)
		switch {
		case at < 0:
			rest = append(rest, "unsafeHttpWhitelist:", "  - "+entry)
		case n > 1 && yamlItem.MatchString(lines[at+1]):
			indent := yamlItem.FindStringSubmatch(lines[at+1])[1]
			lines = splice(lines, at+1, block{indent: indent, lines: []string{"- " + entry}}, made)
		default:
			value := yamlWhitelist.FindStringSubmatch(strings.TrimRight(lines[at], "\r\n"))[1]
			flow := yamlFlow.FindStringSubmatch(value)
			if flow == nil || n > 1 {
				return nil, fmt.Errorf("%w: its unsafeHttpWhitelist is not written as is usual", ErrEdit)
			}
			items := strings.TrimSuffix(strings.TrimSpace(flow[1]), ",")
			if items != "" {
				items += ", "
			}
			lines = splice(lines, at, block{kept: slices.Clone(lines[at : at+1]), lines: []string{"unsafeHttpWhitelist: [" + items + entry + "]"}}, made)
		}
	}
	if len(rest) > 0 {
		lines = splice(lines, len(lines), block{lines: rest}, made)
	}
	return lines, nil
}

// yamlEntry is where a key of the top level stands, and how many lines it and its value
// take. -1: nowhere.
func yamlEntry(lines []string, key *regexp.Regexp) (at, n int) {
	at = slices.IndexFunc(lines, func(l string) bool { return key.MatchString(strings.TrimRight(l, "\r\n")) })
	if at < 0 {
		return -1, 0
	}
	for n = 1; at+n < len(lines); n++ {
		l := lines[at+n]
		if l[0] != ' ' && l[0] != '\t' && !yamlItem.MatchString(l) {
			break
		}
	}
	for n > 1 && strings.TrimSpace(lines[at+n-1]) == "" {
		n--
	}
	return at, n
}

var (
	tomlHeader   = regexp.MustCompile(`^\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$`)
	tomlRegistry = regexp.MustCompile(`^\s*registry\s*=`)
	tomlDotted   = regexp.MustCompile(`^\s*install\s*\.\s*registry\s*=`)
)

// setBunfig writes into the tables that are there: TOML has each table and each key
// but once.
func setBunfig(lines []string, made bool, s Settings) ([]string, error) {
	if slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, `"""`) || strings.Contains(l, `'''`) }) {
		return nil, fmt.Errorf("%w: it has strings of several lines", ErrEdit)
	}
	if len(s.Scopes) == 0 {
		if at := slices.IndexFunc(lines[:firstTable(lines)], tomlDotted.MatchString); at >= 0 {
			return splice(lines, at, block{kept: slices.Clone(lines[at : at+1]), lines: []string{"install.registry = " + strconv.Quote(s.Registry)}}, made), nil
		}
		return setTOML(lines, "install", []setting{{tomlRegistry, "registry = " + strconv.Quote(s.Registry)}}, made), nil
	}
	var all []setting
	for _, scope := range s.Scopes {
		key := regexp.MustCompile(`^\s*["']?@?` + regexp.QuoteMeta(strings.TrimPrefix(scope, "@")) + `["']?\s*=`)
		all = append(all, setting{key, strconv.Quote(scope) + " = " + strconv.Quote(s.Registry)})
	}
	return setTOML(lines, "install.scopes", all, made), nil
}

// setting is a key of a table, and the line that sets it.
type setting struct {
	key  *regexp.Regexp
	line string
}

// firstTable is the line of the first table's header, or their number.
func firstTable(lines []string) int {
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "[") })
	if at < 0 {
		at = len(lines)
	}
	return at
}

// setTOML sets keys of a table: in their places, else below the table's header, else in
// a table at the end.
func setTOML(lines []string, table string, all []setting, made bool) []string {
	header := slices.IndexFunc(lines, func(l string) bool {
		m := tomlHeader.FindStringSubmatch(strings.TrimRight(l, "\r\n"))
		return m != nil && strings.ReplaceAll(m[1], " ", "") == table
	})
	var b block
	if header < 0 {
		b.lines = []string{"[" + table + "]"}
	}
	for _, s := range all {
		at := -1
		for i := header + 1; header >= 0 && i < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[i]), "["); i++ {
			if s.key.MatchString(lines[i]) {
				at = i
				break
			}
		}
		if at < 0 {
			b.lines = append(b.lines, s.line)
		} else {
			lines = splice(lines, at, block{kept: slices.Clone(lines[at : at+1]), lines: []string{s.line}}, made)
		}
	}
	switch {
	case header < 0:
		return splice(lines, len(lines), b, made)
	case len(b.lines) > 0:
		return splice(lines, header+1, b, made)
	}
	return lines
}
