package state

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/upstream"
)

const (
	// keysTime bounds one request for a registry's keys, and keysAgain is the
	// least time between two that fail.
	keysTime  = 15 * time.Second
	keysAgain = time.Minute
)

// Signatures checks registry signatures by a policy: against npm's own keys, and
// those that the registry in use gives for its own, asked for once.
type Signatures struct {
	up     *upstream.Client
	policy npm.SignaturePolicy
	log    *slog.Logger

	mu    sync.Mutex
	ring  []npm.Key // nil until the registry has answered
	tried time.Time
}

// NewSignatures asks nobody yet.
func NewSignatures(up *upstream.Client, policy npm.SignaturePolicy, log *slog.Logger) *Signatures {
	return &Signatures{up: up, policy: policy, log: log}
}

// Check is npm.SignaturePolicy.Check. Where a signature is required and the
// registry's keys cannot be had, it is upstream's error, which may pass.
func (s *Signatures) Check(name npm.Name, version string, d npm.Dist, published string) (npm.Verdict, error) {
	verdict, err := s.policy.Check(npm.PublicKeys(), name, version, d, published)
	if verdict != npm.UnknownKey {
		return verdict, err
	}
	ring, away := s.keys()
	if away != nil && s.policy == npm.RequireSignatures {
		return "", away
	}
	return s.policy.Check(ring, name, version, d, published)
}

func (s *Signatures) keys() ([]npm.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ring != nil {
		return s.ring, nil
	}
	all := npm.PublicKeys()
	if time.Since(s.tried) < keysAgain {
		return all, upstream.ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(context.Background(), keysTime)
	defer cancel()
	own, err := s.up.Keys(ctx)
	s.tried = time.Now()
	if errors.Is(err, npm.ErrKeys) {
		s.log.Error("the registry's keys cannot be read; its signatures count as by strangers", "err", err)
		err = nil
	}
	if err != nil {
		s.log.Warn("the registry's keys cannot be had", "err", err)
		return all, err
	}
	for _, k := range own {
		if slices.ContainsFunc(all, func(have npm.Key) bool { return have.ID == k.ID }) {
			continue // npm's are compiled in
		}
		all = append(all, k)
	}
	s.ring = all
	return all, nil
}

// Free tells the bytes that are free for the ledger, for spooled tarballs and,
// where its disk is on this machine, for the node: the least of them.
func (d Dir) Free(node ipfs.Node) func(context.Context) (uint64, error) {
	return func(ctx context.Context) (uint64, error) {
		free, err := ipfs.FreeSpace(string(d))
		if err != nil {
			return 0, err
		}
		if theirs, known, err := node.Free(ctx); err != nil {
			return 0, err
		} else if known {
			free = min(free, theirs)
		}
		return free, nil
	}
}
