// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"fmt"
	"math/bits"
)

// Flags are control flags of a header. IBM numbers the bits from the left: bit 0 is the highest.
type Flags uint64

// bit returns the flag of a number.
func bit(n int) Flags { return 1 << (63 - n) }

// Plaintext control flags (PCF).
const (
	// PCFAllowDump lets the host take encrypted dumps, which whoever has the CCK can read.
	PCFAllowDump Flags = 1 << (63 - 34)
	// PCFNoComponentEncryption says that the components are in the clear: integrity without confidentiality.
	PCFNoComponentEncryption Flags = 1 << (63 - 35)
	// PCFPCKMODEA, AES, ECC and HMAC let the guest use the PCKMO instruction for keys of that kind.
	PCFPCKMODEA  Flags = 1 << (63 - 56)
	PCFPCKMOAES  Flags = 1 << (63 - 57)
	PCFPCKMOECC  Flags = 1 << (63 - 58)
	PCFPCKMOHMAC Flags = 1 << (63 - 59)
	// PCFBackupTarget says that host keys may be the machines' backup host keys.
	PCFBackupTarget Flags = 1 << (63 - 62)
	// DefaultPCF is what every tool sets unless told otherwise.
	DefaultPCF = PCFPCKMODEA | PCFPCKMOAES | PCFPCKMOECC
	knownPCF   = DefaultPCF | PCFAllowDump | PCFNoComponentEncryption | PCFPCKMOHMAC | PCFBackupTarget
)

// Secret control flags (SCF).
const (
	// SCFExtensionSecretEnforced demands that add-secret requests carry an extension secret derived from the CCK.
	SCFExtensionSecretEnforced Flags = 1 << (63 - 1)
	// SCFCCKUpdate lets an add-secret request replace the CCK.
	SCFCCKUpdate Flags = 1 << (63 - 2)
	knownSCF           = SCFExtensionSecretEnforced | SCFCCKUpdate
)

// UnknownPCF returns the bits of plaintext control flags that have no meaning here.
func UnknownPCF(f Flags) Flags { return f &^ knownPCF }

// UnknownSCF returns the bits of secret control flags that have no meaning here.
func UnknownSCF(f Flags) Flags { return f &^ knownSCF }

// PCFNames names the plaintext control flags that are set, lowest number first; one without a name is "bit N".
func PCFNames(f Flags) []string {
	return names(f, map[int]string{
		34: "allow-dump", 35: "no-component-encryption", 56: "pckmo-dea-tdea", 57: "pckmo-aes", 58: "pckmo-ecc",
		59: "pckmo-hmac", 62: "backup-target-keys",
	})
}

// SCFNames names the secret control flags that are set, as PCFNames does.
func SCFNames(f Flags) []string {
	return names(f, map[int]string{1: "cck-extension-secret-enforced", 2: "cck-update-allowed"})
}

func names(f Flags, known map[int]string) []string {
	out := make([]string, 0, bits.OnesCount64(uint64(f)))
	for n := range 64 {
		if f&bit(n) == 0 {
			continue
		}
		name := known[n]
		if name == "" {
			name = fmt.Sprintf("bit %d", n)
		}
		out = append(out, name)
	}
	return out
}

// Has says whether all of the given flags are set.
func (f Flags) Has(g Flags) bool { return f&g == g }

// String returns the flags as a hexadecimal number.
func (f Flags) String() string { return fmt.Sprintf("0x%016x", uint64(f)) }
