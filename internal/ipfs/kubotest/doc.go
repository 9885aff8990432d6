// Package kubotest pins the Kubo daemon that integration tests run. It is a
// module of its own, for Kubo as a dependency needs replaced modules, which
// the main module must not have. Build the daemon with
//
//	go build -C internal/ipfs/kubotest -trimpath -o OUT github.com/ipfs/kubo/cmd/ipfs
//
// and name it in REGMIRROR_TEST_KUBO.
package kubotest
