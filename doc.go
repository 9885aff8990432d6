// Package registrymirror is an npm registry that lives on IPFS: a registry is
// a curated list of hashes, and the modules live in the network. The programs
// are under cmd; README.md says how they go together.
package registrymirror
