// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// jweMessage is one of JSON Web Encryption (RFC 7516).
type jweMessage struct{ jwe *jose.JSONWebEncryption }

// parseJWE reads a message in JSON or compact form. Only what ocicrypt writes is accepted as the algorithm of a
// recipient: those with passwords would let the sender choose how long we compute. The content's cipher may be any of RFC
// 7518, section 5.1: all authenticate.
func parseJWE(data []byte) (message, error) {
	if err := countJWE(data); err != nil {
		return nil, err
	}
	jwe, err := jose.ParseEncrypted(string(data),
		[]jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256, jose.ECDH_ES_A128KW, jose.ECDH_ES_A192KW, jose.ECDH_ES_A256KW},
		[]jose.ContentEncryption{jose.A128GCM, jose.A192GCM, jose.A256GCM, jose.A128CBC_HS256, jose.A192CBC_HS384, jose.A256CBC_HS512})
	if err != nil {
		return nil, fmt.Errorf("parse JWE: %.200q", err.Error()) // it can quote all of the message
	}
	return jweMessage{jwe}, nil
}

// countJWE bounds the recipients, because each costs a key that is tried an operation with it. The names in a map are
// told apart by case and the last of equal ones counts, which the library refuses anyway.
func countJWE(data []byte) error {
	if len(data) == 0 || data[0] != '{' {
		return nil // compact form, for one recipient
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return fmt.Errorf("parse JWE: %w", err)
	}
	if fields["recipients"] == nil {
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(fields["recipients"], &list); err != nil {
		return fmt.Errorf("parse recipients of JWE: %w", err)
	}
	if len(list) > maxPackets {
		return fmt.Errorf("JWE for %d recipients, at most %d are allowed", len(list), maxPackets)
	}
	return nil
}

func (jweMessage) protocol() string         { return protocolJWE }
func (jweMessage) suits(k *privateKey) bool { return k.rsa != nil || k.ec != nil }

func (m jweMessage) open(k *privateKey) ([]byte, error) {
	var key any = k.rsa
	if k.ec != nil {
		key = k.ec
	}
	_, _, plain, err := m.jwe.DecryptMulti(key)
	if err != nil {
		return nil, errors.New("key does not open the JWE")
	}
	return plain, nil
}
