package main

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/registry-mirror/registry-mirror/internal/follow"
)

// serveWeb is what --listen serves.
func serveWeb(h *house, feed http.Handler) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		follow.Collector(h.follower), limits{h},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	mux := http.NewServeMux()
	mux.Handle("/registry", http.StripPrefix("/registry", feed))
	mux.Handle("/registry/", http.StripPrefix("/registry", feed))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	// Healthy is a process that answers and reads its ledger; ready one that
	// nothing keeps from its work.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := h.store.Status(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if trouble := h.follower.Status().Trouble; trouble != "" {
			http.Error(w, trouble, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

// limits shows how upstream's client paces itself.
type limits struct{ h *house }

var (
	limitDesc     = prometheus.NewDesc("follower_upstream_limit", "Requests that a host of upstream's is sent at once.", []string{"host"}, nil)
	inFlightDesc  = prometheus.NewDesc("follower_upstream_in_flight", "Requests to a host of upstream's under way.", []string{"host"}, nil)
	throttledDesc = prometheus.NewDesc("follower_upstream_throttled_total", "Answers of a host that asked for fewer requests, and timeouts.", []string{"host"}, nil)
)

// Describe implements prometheus.Collector.
func (limits) Describe(ch chan<- *prometheus.Desc) {
	ch <- limitDesc
	ch <- inFlightDesc
	ch <- throttledDesc
}

// Collect implements prometheus.Collector.
func (l limits) Collect(ch chan<- prometheus.Metric) {
	for _, host := range l.h.upstream.Limits() {
		ch <- prometheus.MustNewConstMetric(limitDesc, prometheus.GaugeValue, float64(host.Limit), host.Host)
		ch <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(host.InFlight), host.Host)
		ch <- prometheus.MustNewConstMetric(throttledDesc, prometheus.CounterValue, float64(host.Throttled), host.Host)
	}
}

// answering answers a request of another of our commands with what work returns.
func answering(work func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := work(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			v = map[string]string{"error": err.Error()}
		}
		json.NewEncoder(w).Encode(v) // a client that went away is no concern of ours
	})
}
