package main

import (
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
)

func gateways(urls []string) []mirror.Gateway {
	list := make([]mirror.Gateway, len(urls))
	for i, u := range urls {
		list[i] = ipfs.NewGateway(u)
	}
	return list
}
