// Package damage tells of files of ours that Pebble finds damaged: as an error of
// whoever reads them, which names the file. By itself Pebble ends the process, also
// from a compaction in the background, and so would those commands end that are there
// to find damage and to mend it. It keeps a power cut from looking like damage, and a
// small store from taking the room of a large one. It knows nothing of what the files
// hold.
package damage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// Listener lets the process go on, and logs each damaged file once.
func Listener(log *slog.Logger) *pebble.EventListener {
	var told sync.Map
	return &pebble.EventListener{DataCorruption: func(info pebble.DataCorruptionInfo) {
		if _, again := told.LoadOrStore(info.Path, true); !again {
			log.Error("a file is damaged", "file", info.Path, "err", info.Details.Error())
		}
	}}
}

// As makes an error that Pebble gives for a damaged file wrap cause, and name the
// file. Any other error, and one that wraps cause already, stays as it is.
func As(err, cause error) error {
	if err == nil || errors.Is(err, cause) || !pebble.IsCorruptionError(err) {
		return err
	}
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		return fmt.Errorf("%w: file %s: %s", cause, info.Path, info.Details)
	}
	return fmt.Errorf("%w: %s", cause, err)
}

// AtOpen is As for an error of pebble.Open of a store that is there: a file of it that
// is gone, or shorter than it was, is damage too.
func AtOpen(err, cause error) error {
	err = As(err, cause)
	if err == nil || errors.Is(err, cause) {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "object size mismatch") {
		return fmt.Errorf("%w: %s", cause, err)
	}
	return err
}
