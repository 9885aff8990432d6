// Package document is the stored form of a package document: JSON cut at the
// borders of its sections and versions, each piece compressed apart, all of
// them together one ordinary gzip member, so that a new version of a large
// package adds a few blocks. It is pure: it knows nothing of npm's meaning of
// the fields, of IPFS blocks or of stores.
package document

// Document is a compressed document. The concatenation of Segments is one
// gzip member; each segment is meant to be one UnixFS chunk.
type Document struct {
	Segments [][]byte
	Size     int64 // bytes before compression
}
