// Command forge signs, for the end-to-end scripts, the record that a thief or an accident
// would: forge KEYFILE CID SEQUENCE LIFETIME [SIZE]. KEYFILE is a private key in the clear
// as `ipfs key export` writes it, LIFETIME from now and negative for one that has expired,
// SIZE what the record is filled up to. The record goes to standard output.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "forge: error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 && len(args) != 5 {
		return errors.New("usage: forge KEYFILE CID SEQUENCE LIFETIME [SIZE]")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	key, err := ic.UnmarshalPrivateKey(text)
	if err != nil {
		return err
	}
	value, err := cid.Decode(args[1])
	if err != nil {
		return err
	}
	seq, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	lifetime, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	record, err := ipns.NewRecord(key, path.FromCid(value), seq, time.Now().Add(lifetime), time.Minute)
	if err != nil {
		return err
	}
	raw, err := ipns.MarshalRecord(record)
	if err != nil {
		return err
	}
	if len(args) == 5 {
		size, err := strconv.Atoi(args[4])
		if err != nil {
			return err
		}
		raw = append(raw, make([]byte, max(0, size-len(raw)))...)
	}
	_, err = os.Stdout.Write(raw)
	return err
}
