package npm

// RewriteTarballs returns the packument raw, full or abbreviated, with
// dist.tarball of each version replaced by what to answers for it; every other
// byte stays. Where nothing changes raw itself is returned. Errors wrap ErrPackument.
func RewriteTarballs(raw []byte, to func(version, upstreamURL string) string) ([]byte, error) {
	var dst []byte
	at := 0
	c, err := Check(raw)
	if err != nil {
		return nil, err
	}
	s := c.scan()
	_, err = s.object(func(field []byte, _ span) error {
		if string(field) != "versions" || s.kind() != '{' {
			s.value()
			return nil
		}
		_, err := s.object(func(name []byte, _ span) error {
			if s.kind() != '{' {
				s.value()
				return nil
			}
			version := string(name)
			_, err := s.object(func(field []byte, _ span) error {
				if string(field) != "dist" || s.kind() != '{' {
					s.value()
					return nil
				}
				_, err := s.object(func(field []byte, _ span) error {
					v := s.value()
					if string(field) != "tarball" {
						return nil
					}
					if dst == nil {
						// URLs of another origin are rarely longer by more.
						dst = make([]byte, 0, len(raw)+len(raw)/32+512)
					}
					dst = append(dst, raw[at:v.start]...)
					dst = rewriteURL(dst, v.of(raw), version, to)
					at = v.end
					return nil
				})
				return err
			})
			return err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if dst == nil {
		return raw, nil
	}
	return append(dst, raw[at:]...), nil
}

// rewriteURL appends the JSON value with its URL replaced. A value that is no
// string, and a URL that stays, keep their bytes.
func rewriteURL(dst, value []byte, version string, to func(version, upstreamURL string) string) []byte {
	was, ok := unquote(value)
	if !ok {
		return append(dst, value...)
	}
	is := to(version, was)
	if is == was {
		return append(dst, value...)
	}
	return appendQuote(dst, is)
}
