package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

const (
	registryKeysName = "registry-keys.json"
	// registryKeysEvery is how often a registry is asked for its keys: they
	// change within years, and are announced before they sign.
	registryKeysEvery = 24 * time.Hour
	// registryKeysFirst bounds the first time, for which others wait.
	registryKeysFirst = 5 * time.Second
)

// RegistryKeys is the document of the public keys that sign what is in the
// ledger, as its registry gave it, nil where it gave none.
func (d Dir) RegistryKeys() ([]byte, error) {
	raw, err := os.ReadFile(d.path(registryKeysName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the registry's keys: %w", err)
	}
	return raw, nil
}

// FetchRegistryKeys fetches that document anew. One that cannot be had is logged,
// and one that there no longer is changes nothing: what was signed still verifies.
func (d Dir) FetchRegistryKeys(ctx context.Context, up *upstream.Client, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, keysTime)
	defer cancel()
	raw, err := up.KeysDocument(ctx)
	have, readErr := d.RegistryKeys()
	if err == nil {
		err = readErr
	}
	if err == nil && raw != nil && !bytes.Equal(raw, have) {
		err = d.replace(registryKeysName, raw)
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		log.WarnContext(ctx, "the registry's signing keys are not brought up to date", "error", err)
	}
}

// FollowRegistryKeys keeps the document up to date until ctx ends. Where there is
// none yet it fetches it before it returns, in a few seconds at most, so that a
// first release has it. The rest is the function that it returns, which runs on.
func (d Dir) FollowRegistryKeys(ctx context.Context, up *upstream.Client, log *slog.Logger) (follow func()) {
	have, err := d.RegistryKeys()
	fetched := err == nil && have == nil
	if fetched {
		first, cancel := context.WithTimeout(ctx, registryKeysFirst)
		defer cancel()
		d.FetchRegistryKeys(first, up, log)
	}
	return func() {
		if !fetched {
			d.FetchRegistryKeys(ctx, up, log)
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(registryKeysEvery):
				d.FetchRegistryKeys(ctx, up, log)
			}
		}
	}
}
