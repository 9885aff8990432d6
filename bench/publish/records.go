//go:build linux

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// records times signing and verifying for a second each: by ipnskeys, which
// checks what it signed before it hands it out, and ipnsrecord; and by boxo.
func (r *result) records() error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ipnskeys.NewSigner(private)
	if err != nil {
		return err
	}
	boxo, _, err := ic.KeyPairFromStdKey(&private)
	if err != nil {
		return err
	}
	hash, err := multihash.Sum([]byte("a release"), multihash.SHA2_256, -1)
	if err != nil {
		return err
	}
	value := cid.NewCidV1(cid.DagProtobuf, hash)
	eol := time.Now().Add(7 * 24 * time.Hour).UTC().Truncate(time.Second)
	name := signer.IPNSName()

	var raw []byte
	if r.Signed, err = perSecond(func(i uint64) (err error) {
		raw, err = signer.Sign(value, i, eol, time.Minute)
		return err
	}); err != nil {
		return err
	}
	if r.Verified, err = perSecond(func(uint64) error {
		_, err := ipnsrecord.Check(name, raw, time.Now())
		return err
	}); err != nil {
		return err
	}
	if r.BoxoSigned, err = perSecond(func(i uint64) error {
		record, err := ipns.NewRecord(boxo, path.FromCid(value), i, eol, time.Minute)
		if err != nil {
			return err
		}
		_, err = ipns.MarshalRecord(record)
		return err
	}); err != nil {
		return err
	}
	r.BoxoVerified, err = perSecond(func(uint64) error {
		record, err := ipns.UnmarshalRecord(raw)
		if err != nil {
			return err
		}
		return ipns.ValidateWithName(record, name)
	})
	return err
}

// perSecond does f for a second, and says how often that was.
func perSecond(f func(i uint64) error) (float64, error) {
	began := time.Now()
	for i := uint64(1); ; i++ {
		if err := f(i); err != nil {
			return 0, err
		}
		if took := time.Since(began); took >= time.Second {
			return float64(i) / took.Seconds(), nil
		}
	}
}
