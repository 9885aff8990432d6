package main

import (
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/route"
)

func gateways(urls []string) []mirror.Gateway {
	list := make([]mirror.Gateway, len(urls))
	for i, u := range urls {
		list[i] = ipfs.NewGateway(u)
	}
	return list
}

const routeUsage = "where to look for the record as well: URL of a delegated routing server, or absolute path of a web server's directory; may be repeated"

// routes are the places beside node and gateways where records lie. Error: route.ErrRoute.
func routes(texts []string) ([]mirror.RecordRoute, error) {
	list := make([]mirror.RecordRoute, len(texts))
	for i, text := range texts {
		r, err := route.Parse(text, nil)
		if err != nil {
			return nil, err
		}
		_, far := r.(route.HTTP)
		list[i] = mirror.RecordRoute{Name: r.String(), Get: r.Get, Cached: far}
	}
	return list, nil
}
