package state

import (
	"errors"
	"os"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

// UserAgent is how the commands name themselves to registries and feeds.
const UserAgent = "registry-mirror (https://github.com/registry-mirror/registry-mirror)"

// OpenUpstream is a client of the npm registry at url; where url is empty, of
// the one that npm's own configuration names. It also returns that
// configuration. Of o, Registry, UserAgent and Spool are set here.
func (d Dir) OpenUpstream(url string, o upstream.Options) (*upstream.Client, npm.Config, error) {
	dir, err := os.Getwd()
	if err != nil {
		dir = "" // no project to read .npmrc from
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	config, err := npm.LoadConfig(os.Getenv, dir, home)
	if err != nil && (url == "" || !errors.Is(err, npm.ErrConfig)) {
		return nil, npm.Config{}, err
	}
	if url != "" {
		if config.Registry, err = npm.ParseRegistry(url); err != nil {
			return nil, npm.Config{}, err
		}
	}
	if err := os.MkdirAll(d.Temp(), 0o700); err != nil {
		return nil, npm.Config{}, err
	}
	o.Registry, o.UserAgent, o.Spool = config, UserAgent, d.Temp()
	return upstream.New(o), config, nil
}
