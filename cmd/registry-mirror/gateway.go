package main

import (
	"net/url"

	"github.com/registry-mirror/registry-mirror/internal/cli"
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

// checkGateways refuses what is no URL of a gateway: it would be asked for ever.
func checkGateways(urls []string) error {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return cli.Hint(cli.Usagef("--gateway: %.200q is no gateway", text), "give its http or https URL, as in http://192.0.2.1:8080")
		}
	}
	return nil
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
