package publish

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Outcome is how a run of Publish or Republish ended.
type Outcome struct {
	Registry string
	Result   Result // as far as it came
	Err      error
	Code     int // the exit code that stands for Err
	Ended    time.Time
}

// MetricsUsage describes --metrics of our commands.
const MetricsUsage = "file that says for Prometheus how each run ended, as its node exporter's textfile collector reads it: its name ends in .prom (default: none)"

// ErrMetrics is returned for a file that the textfile collector would not read.
var ErrMetrics = errors.New("its name does not end in .prom")

// CheckMetrics looks at the path of a file of metrics before there is anything to
// write. Error: ErrMetrics.
func CheckMetrics(path string) error {
	if !strings.HasSuffix(path, ".prom") {
		return fmt.Errorf("metrics file %s: %w", path, ErrMetrics)
	}
	return nil
}

// maxMetrics bounds a file of metrics that is read, in bytes; one takes about 3,000.
const maxMetrics = 1 << 20

// WriteMetrics writes o to path for the textfile collector of Prometheus' node
// exporter, which reads names that end in ".prom" (https://github.com/prometheus/node_exporter#textfile-collector).
// The file is replaced by a rename. What the run did not learn stays as the runs
// before wrote it: when one was last a success, until when readers have a record. A
// file is of one registry. deploy/prometheus has alerts on what is written.
func WriteMetrics(path string, o Outcome) error {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(outcome{o}); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	now, err := registry.Gather()
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	forgets := o.forgets()
	for name, family := range readMetrics(path) {
		if !slices.ContainsFunc(now, func(f *dto.MetricFamily) bool { return f.GetName() == name }) && !slices.Contains(forgets, name) {
			now = append(now, family)
		}
	}
	slices.SortFunc(now, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	err = prometheus.WriteToTextfile(path, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return now, nil }))
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		err = file.Err // it is of another file, which would have been renamed
	}
	if err != nil {
		return fmt.Errorf("write metrics %s: %w", path, err)
	}
	return nil
}

// readMetrics gives what was written before; nothing where that cannot be read, for
// it is written anew.
func readMetrics(path string) map[string]*dto.MetricFamily {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(io.LimitReader(f, maxMetrics))
	if err != nil {
		return nil
	}
	return families
}

const metricsPrefix = "publisher_"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metricsPrefix+name, help, append([]string{"registry"}, labels...), nil)
}

const withheldMetric = "withheld"

var (
	runDesc      = desc("last_run_timestamp_seconds", "When a run last ended, however it did.")
	successDesc  = desc("last_success_timestamp_seconds", "When a run last ended with exit code 0.")
	codeDesc     = desc("last_exit_code", "Exit code of the last run; 0 is success.")
	numberDesc   = desc("release_number", "Number of the newest release.")
	createdDesc  = desc("release_created_timestamp_seconds", "When the newest release was built.")
	packagesDesc = desc("packages", "Packages in the newest release.")
	versionsDesc = desc("versions", "Versions in the newest release.")
	sequenceDesc = desc("record_sequence", "Sequence of the record that was last read back.")
	expiryDesc   = desc("record_expiry_timestamp_seconds", "When the record that was last read back expires.")
	dueDesc      = desc("record_signing_due_timestamp_seconds", "From when on a run signs anew.")
	readBackDesc = desc("route_read_back", "1 where the route gave the record back, 0 where it did not.", "route")
	withheldDesc = desc(withheldMetric, "Versions, and whole packages, that are stored but in no release.", "reason")

	descriptions = []*prometheus.Desc{runDesc, successDesc, codeDesc, numberDesc, createdDesc, packagesDesc, versionsDesc,
		sequenceDesc, expiryDesc, dueDesc, readBackDesc, withheldDesc}
)

// outcome collects an Outcome.
type outcome struct{ Outcome }

// forgets are metrics of the run before that have no value any more.
func (o Outcome) forgets() []string {
	if o.knowsWithheld() {
		return []string{metricsPrefix + withheldMetric}
	}
	return nil
}

func (o Outcome) knowsWithheld() bool {
	return o.Result.Number > 0 && !errors.Is(o.Err, ErrWithheld)
}

// Describe implements prometheus.Collector.
func (outcome) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (o outcome) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{o.Registry}, labels...)...)
	}
	at := func(d *prometheus.Desc, t time.Time) { gauge(d, float64(t.Unix())) }
	at(runDesc, o.Ended)
	gauge(codeDesc, float64(o.Code))
	if o.Code == 0 {
		at(successDesc, o.Ended)
	}
	r := o.Result
	if r.Number > 0 {
		gauge(numberDesc, float64(r.Number))
		at(createdDesc, r.Release.Created)
		gauge(packagesDesc, float64(r.Packages))
		gauge(versionsDesc, float64(r.Versions))
	}
	for _, route := range r.Routes {
		v := 0.0
		if route.ReadBack {
			v = 1
		}
		gauge(readBackDesc, v, strings.ToValidUTF8(route.Name, "\uFFFD"))
	}
	// What no route has is no help to readers: they still have the record before.
	if slices.ContainsFunc(r.Routes, func(one Route) bool { return one.ReadBack }) {
		gauge(sequenceDesc, float64(r.Sequence))
		at(expiryDesc, r.EOL)
		at(dueDesc, r.Due)
	}
	if o.knowsWithheld() {
		reasons := map[string]int{}
		for _, one := range r.Withheld {
			reasons[one.Reason]++
		}
		for reason, n := range reasons {
			gauge(withheldDesc, float64(n), reason)
		}
	}
}
