// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Get returns the body of a GET of an https URL that is not one of a registry's API: a store of signatures beside the
// registry. Certificates, proxy, redirects and retries are those of registries; credentials are never sent. The body is
// here in full when Get returns, and has at most limit bytes: more is an error. ErrNotFound stands for 404 and 410, as
// there is nothing under that URL; any other answer but 200 is a failure.
func (c *Client) Get(ctx context.Context, rawURL string, limit int64) (io.ReadCloser, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
		// The parser's own error would quote a password.
		return nil, errors.New("URL is not of the form https://host/path without credentials")
	}
	if limit < 0 || limit > MaxManifestSize {
		return nil, fmt.Errorf("%s: a limit of %d bytes is not between 0 and %d", u, limit, MaxManifestSize)
	}
	var data []byte
	err = c.again(ctx, u.String(), c.retry.Attempts, func(ctx context.Context) (err error) {
		data, err = c.getOnce(withLimit(ctx, limit), u)
		return err
	})
	if err != nil {
		return nil, explain(u.String(), u.Host, err)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// getOnce makes one attempt.
func (c *Client) getOnce(ctx context.Context, u *url.URL) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = c.header.Clone()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // read to the end, or of no use
	switch resp.StatusCode {
	case http.StatusOK:
		return io.ReadAll(resp.Body)
	case http.StatusNotFound, http.StatusGone:
		return nil, ErrNotFound
	default:
		return nil, fmt.Errorf("answer is %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
}
