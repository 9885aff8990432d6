package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/publish"
)

func bindMetrics(cmd *cobra.Command, r *registry) {
	cmd.Flags().StringVar(&r.metrics, "metrics", "", publish.MetricsUsage)
}

func (r *registry) checkMetrics() error {
	if r.metrics == "" {
		return nil
	}
	return publish.CheckMetrics(r.metrics)
}

// measure writes --metrics. That it cannot be written does not undo what was
// published: it is said, and the code stays. A run that found another at work, whose
// file it is, writes nothing.
func (r *registry) measure(cmd *cobra.Command, result publish.Result, err error) {
	code := cli.Code(err, causes)
	if r.metrics == "" || code == cli.CodeLocked {
		return
	}
	o := publish.Outcome{Registry: r.name, Result: result, Err: err, Code: code, Ended: time.Now()}
	if err := publish.WriteMetrics(r.metrics, o); err != nil {
		r.Logger(cmd.ErrOrStderr(), false).WarnContext(cmd.Context(), "metrics not written", "error", err)
	}
}
