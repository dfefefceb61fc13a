// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
)

const ibm = "International Business Machines Corporation"

// Attribute types of a name (X.520).
var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidCountry      = asn1.ObjectIdentifier{2, 5, 4, 6}
	oidLocality     = asn1.ObjectIdentifier{2, 5, 4, 7}
	oidProvince     = asn1.ObjectIdentifier{2, 5, 4, 8}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidUnit         = asn1.ObjectIdentifier{2, 5, 4, 11}
)

// isSigningKey says whether a subject is that of IBM's host key signing key: these six attributes and no other.
func isSigningKey(subject *pkix.Name) bool {
	if len(subject.Names) != 6 {
		return false
	}
	is := func(oid asn1.ObjectIdentifier, ok func(string) bool) bool {
		for _, a := range subject.Names {
			if a.Type.Equal(oid) {
				value, isText := a.Value.(string)
				return isText && ok(value)
			}
		}
		return false
	}
	equal := func(want ...string) func(string) bool {
		return func(got string) bool { return slices.Contains(want, got) }
	}
	return is(oidCountry, equal("US")) && is(oidProvince, equal("New York")) && is(oidLocality, equal("Poughkeepsie", "Armonk")) &&
		is(oidOrganization, equal(ibm)) && is(oidCommonName, equal(ibm)) &&
		is(oidUnit, func(got string) bool { return strings.HasSuffix(got, "Key Signing Service") })
}

// sameName compares names as IBM's revocation lists need it: their issuers have the attributes of the signing key's
// subject in another order, and the old locality after the company had moved.
func sameName(a, b pkix.Name) bool {
	x, okX := attributes(a)
	y, okY := attributes(b)
	return okX && okY && slices.Equal(x, y)
}

// attributes returns a name's attributes in an order that does not depend on that in the name. ok is false if one is not
// text.
func attributes(n pkix.Name) (out []string, ok bool) {
	for _, a := range n.Names {
		value, ok := a.Value.(string)
		if !ok {
			return nil, false
		}
		if a.Type.Equal(oidLocality) && value == "Armonk" {
			value = "Poughkeepsie"
		}
		out = append(out, a.Type.String()+"="+value)
	}
	slices.Sort(out)
	return out, true
}
