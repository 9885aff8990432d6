package publish

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/registry-mirror/registry-mirror/index"
)

// good is the outcome of a run that signed, with a route that is silent where said.
func good(at time.Time, silent ...string) Outcome {
	o := Outcome{Registry: "main", Ended: at, Result: Result{
		Number: 3, Release: index.Release{Number: 3, Created: at.Add(-time.Hour)}, Packages: 5, Versions: 9,
		Sequence: 4, EOL: at.Add(7 * 24 * time.Hour), Due: at.Add(7 * 12 * time.Hour),
		Withheld: []Withheld{{Name: "a", Reason: "x"}, {Name: "b", Reason: "x"}, {Name: "c", Reason: "y"}},
	}}
	for _, name := range []string{"node", "/var/www", "https://router.example"} {
		o.Result.Routes = append(o.Result.Routes, Route{Name: name, ReadBack: !slices.Contains(silent, name)})
	}
	if len(silent) > 0 {
		o.Err, o.Code = ErrUnconfirmed, 10
	}
	return o
}

// written gives each sample of a file, by its name and labels without the registry.
func written(t *testing.T, path string) map[string]float64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(f)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for name, family := range families {
		if family.GetHelp() == "" {
			t.Errorf("%s says nothing of itself", name)
		}
		for _, m := range family.GetMetric() {
			key, registry := name, false
			for _, label := range m.GetLabel() {
				if label.GetName() == "registry" {
					registry = label.GetValue() == "main"
					continue
				}
				key += "{" + label.GetValue() + "}"
			}
			if !registry {
				t.Errorf("%s is of no registry", name)
			}
			got[key] = m.GetGauge().GetValue()
		}
	}
	return got
}

func TestWriteMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "main.prom")
	write := func(o Outcome) map[string]float64 {
		t.Helper()
		if err := WriteMetrics(path, o); err != nil {
			t.Fatal(err)
		}
		return written(t, path)
	}
	unix := func(at time.Time) float64 { return float64(at.Unix()) }
	first := write(good(dayZero))
	want := map[string]float64{
		"publisher_last_run_timestamp_seconds": unix(dayZero), "publisher_last_success_timestamp_seconds": unix(dayZero), "publisher_last_exit_code": 0,
		"publisher_release_number": 3, "publisher_release_created_timestamp_seconds": unix(dayZero.Add(-time.Hour)),
		"publisher_packages": 5, "publisher_versions": 9, "publisher_record_sequence": 4,
		"publisher_record_expiry_timestamp_seconds":      unix(dayZero.Add(7 * 24 * time.Hour)),
		"publisher_record_signing_due_timestamp_seconds": unix(dayZero.Add(7 * 12 * time.Hour)),
		"publisher_route_read_back{node}":                1, "publisher_route_read_back{/var/www}": 1, "publisher_route_read_back{https://router.example}": 1,
		"publisher_withheld{x}": 2, "publisher_withheld{y}": 1,
	}
	if !maps.Equal(first, want) {
		t.Errorf("first: %v\nwant %v", first, want)
	}

	// What a run did not learn stays, the last success before all.
	later := dayZero.Add(4 * time.Hour)
	want["publisher_last_run_timestamp_seconds"], want["publisher_last_exit_code"] = unix(later), 69
	if got := write(Outcome{Registry: "main", Ended: later, Code: 69, Err: errors.New("away")}); !maps.Equal(got, want) {
		t.Errorf("the node is away: %v\nwant %v", got, want)
	}

	// A record that no route gave back is none that readers have.
	o := good(later, "node", "/var/www", "https://router.example")
	o.Result.Sequence, o.Result.EOL = 5, o.Result.EOL.Add(time.Hour)
	got := write(o)
	for name, v := range map[string]float64{
		"publisher_record_sequence": 4, "publisher_record_expiry_timestamp_seconds": unix(dayZero.Add(7 * 24 * time.Hour)),
		"publisher_route_read_back{node}": 0, "publisher_last_exit_code": 10, "publisher_last_success_timestamp_seconds": unix(dayZero),
	} {
		if got[name] != v {
			t.Errorf("nobody gave it back: %s is %v, not %v", name, got[name], v)
		}
	}

	// A route that is no more configured, and a reason that is no more, go.
	o = good(later)
	o.Result.Routes, o.Result.Withheld = o.Result.Routes[:1], nil
	got = write(o)
	for name := range got {
		if strings.HasPrefix(name, "publisher_withheld") || strings.Contains(name, "/var/www") {
			t.Errorf("%s stayed", name)
		}
	}

	// A damaged file is written anew.
	if err := os.WriteFile(path, []byte("publisher_last_run{ 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := write(good(dayZero)); len(got) != len(want) {
		t.Errorf("after damage: %v", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the exporter cannot read it: %v, %v", info.Mode(), err)
	}
	if err := WriteMetrics(filepath.Join(t.TempDir(), "away", "main.prom"), o); err == nil {
		t.Error("written into no directory")
	}
	if err := CheckMetrics("metrics.txt"); !errors.Is(err, ErrMetrics) {
		t.Error(err)
	}
}

// notMetrics are words of PromQL, label names that follow "on", and templates' own.
var notMetrics = regexp.MustCompile(`^(time|vector|scalar|unless|and|on|instance|registry)$`)

// The rules that we hand out name only what is written, in a form that promtool takes.
// They are held to a plain subset of YAML: a line is a key with a scalar, or opens a block.
func TestAlerts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "main.prom")
	if err := WriteMetrics(path, good(dayZero)); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for name := range written(t, path) {
		name, _, _ = strings.Cut(name, "{")
		known[name] = true
	}
	raw, err := os.ReadFile("../../deploy/prometheus/publisher.yml")
	if err != nil {
		t.Fatal(err)
	}
	shape := regexp.MustCompile(`^( *)(- )?([a-z_]+):(?: (.+))?$`)
	identifier := regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	keys := map[int]string{ // allowed, by depth
		0: "groups", 2: "name", 4: "name rules", 6: "record alert", 8: "expr for labels annotations", 10: "severity summary description",
	}
	alerts, records, exprs := map[string]bool{}, map[string]bool{}, 0
	used := map[string]bool{}
	for n, text := range strings.Split(string(raw), "\n") {
		if strings.TrimSpace(text) == "" || strings.HasPrefix(strings.TrimSpace(text), "#") {
			continue
		}
		m := shape.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("line %d: %q", n+1, text)
			continue
		}
		depth, key, value := len(m[1]), m[3], m[4]
		if !slices.Contains(strings.Fields(keys[depth]), key) {
			t.Errorf("line %d: %s at depth %d", n+1, key, depth)
		}
		switch quoted := strings.HasPrefix(value, `"`); {
		case quoted && (len(value) < 2 || !strings.HasSuffix(value, `"`) || strings.Contains(value[1:len(value)-1], `"`)),
			!quoted && (strings.Contains(value, ": ") || strings.Contains(value, " #") || strings.ContainsAny(value[:min(1, len(value))], "{[&*!|>'%@`")),
			strings.Count(value, "{{") != strings.Count(value, "}}"), strings.Count(value, "(") != strings.Count(value, ")"):
			t.Errorf("line %d: %q is no plain scalar", n+1, value)
		}
		switch key {
		case "alert":
			if alerts[value] {
				t.Errorf("line %d: %s is there twice", n+1, value)
			}
			alerts[value] = true
		case "record":
			records[value] = true
		case "for":
			if _, err := model.ParseDuration(value); err != nil {
				t.Errorf("line %d: %v", n+1, err)
			}
		case "expr":
			exprs++
			for _, name := range identifier.FindAllString(value, -1) {
				if !known[name] && !records[name] && !notMetrics.MatchString(name) {
					t.Errorf("line %d: nothing writes %s", n+1, name)
				}
				used[name] = true
			}
		}
	}
	if exprs != len(alerts)+len(records) || len(alerts) < 5 {
		t.Errorf("%d expressions, %d alerts, %d records", exprs, len(alerts), len(records))
	}
	for _, name := range []string{"publisher_record_expiry_timestamp_seconds", "publisher_last_success_timestamp_seconds", "publisher_route_read_back"} {
		if !used[name] {
			t.Errorf("no alert on %s", name)
		}
	}
}
