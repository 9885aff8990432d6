package follow

import "github.com/prometheus/client_golang/prometheus"

// Collector gives Prometheus what Status says of f. Main registers it.
func Collector(f *Follower) prometheus.Collector { return collector{f} }

type collector struct{ f *Follower }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("follower_"+name, help, labels, nil)
}

var (
	packagesDesc    = desc("packages", "Packages in the ledger.", "state")
	versionsDesc    = desc("versions", "Versions whose tarballs are stored.")
	bytesDesc       = desc("stored_bytes", "Bytes of the tarballs that are stored.")
	queueDesc       = desc("queue", "Items that are not tried yet, or to be tried again.", "state")
	refusedDesc     = desc("refused", "Items on the dead-letter list.", "reason")
	lagRowsDesc     = desc("lag_sequences", "Sequences between the feed's head and the cursor, -1 if not known.")
	lagSecondsDesc  = desc("lag_seconds", "How long the front of the queue has waited, not tried yet.")
	lastDesc        = desc("last_success_timestamp_seconds", "When a page or a fill was last done to its end.")
	troubleDesc     = desc("trouble", "1 while something keeps the follower from its work.")
	rowsTotal       = desc("feed_rows_total", "Rows of the feed that were read.")
	itemsTotal      = desc("items_done_total", "Items of the queue that ended, stored or refused.")
	versionsTotal   = desc("versions_stored_total", "Versions that were stored.")
	bytesTotal      = desc("tarball_bytes_stored_total", "Bytes of tarballs that were stored.")
	allDescriptions = []*prometheus.Desc{packagesDesc, versionsDesc, bytesDesc, queueDesc, refusedDesc, lagRowsDesc, lagSecondsDesc,
		lastDesc, troubleDesc, rowsTotal, itemsTotal, versionsTotal, bytesTotal}
)

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range allDescriptions {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.f.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(packagesDesc, float64(s.Stored.Packages-s.Stored.Known), "stored")
	gauge(packagesDesc, float64(s.Stored.Known), "known")
	gauge(packagesDesc, float64(s.Stored.Deleted), "deleted")
	gauge(versionsDesc, float64(s.Stored.Versions))
	gauge(bytesDesc, float64(s.Stored.Bytes))
	gauge(queueDesc, float64(s.Stored.Queued), "fresh")
	gauge(queueDesc, float64(s.Stored.Retrying), "retrying")
	for reason, n := range s.Reasons {
		gauge(refusedDesc, float64(n), reason)
	}
	gauge(lagRowsDesc, float64(s.LagRows))
	gauge(lagSecondsDesc, s.LagSeconds)
	if !s.LastSuccess.IsZero() {
		gauge(lastDesc, float64(s.LastSuccess.Unix()))
	}
	trouble := 0.0
	if s.Trouble != "" {
		trouble = 1
	}
	gauge(troubleDesc, trouble)
	counter(rowsTotal, s.RowsRead)
	counter(itemsTotal, s.ItemsDone)
	counter(versionsTotal, s.VersionsStored)
	counter(bytesTotal, s.BytesStored)
}
