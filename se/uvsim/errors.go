// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package uvsim

import (
	"errors"
	"fmt"

	"github.com/cloister-cc/cloister/se"
)

// Commands that answer with an error.
const (
	// CommandSetIPIB is the hypervisor's check of the IPIB (DIAG 308, subcode 8).
	CommandSetIPIB = "DIAG 308 subcode 8"
	// CommandSetParms hands the header to the ultravisor.
	CommandSetParms = "KVM_PV_SET_SEC_PARMS"
	// CommandUnpack decrypts the pages.
	CommandUnpack = "KVM_PV_UNPACK"
	// CommandVerify compares the digests.
	CommandVerify = "KVM_PV_VERIFY"
)

// Error is an answer of the simulated machine.
type Error struct {
	// Command is the step that failed.
	Command string
	// RC and RRC are return code and reason code, as the real machine prints them.
	RC, RRC uint16
	// Text says what they mean.
	Text string
	// Cause is the finding behind it, if there is more to say.
	Cause error
}

// Error implements error.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s: rc 0x%04x rrc 0x%04x: %s", e.Command, e.RC, e.RRC, e.Text)
	if e.Cause != nil {
		text += " (" + e.Cause.Error() + ")"
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Hint says what to do about it; "" where nothing can be said.
func (e *Error) Hint() string {
	switch {
	case e.RC == rcHostKey && e.RRC == rrcNoHostKey:
		return "the image was made for other machines: 'cloister se test' says for which, 'cloister se create' makes one for this one"
	case e.RC == rcVerify:
		return "the image was changed after it had been made: get it again, or make it anew"
	default:
		return ""
	}
}

// Return codes, and reason codes of each.
const (
	rcInvalidIPIB = 0x0402

	rcVerify  = 0x0102
	rrcALD    = 0x001a
	rrcPLD    = 0x001b
	rrcTLD    = 0x001c
	rrcPages  = 0x001d
	rcVersion = 0x0104

	rrcVersion = 0x0001
	rcPCF      = 0x0106
	rrcPCF     = 0x0030

	rcHostKey      = 0x0108
	rrcNoHostKey   = 0x0005
	rrcCustomerKey = 0x000b
	rrcBackupKey   = 0x0034

	rcSCF = 0x0109

	rcHeader      = 0x010a
	rrcLength     = 0x0031
	rrcEncrypted  = 0x0039
	rrcNoSlots    = 0x0040
	rrcNotPublic  = 0
	offsetVersion = 0x08
	offsetSize    = 0x0c
	offsetSlots   = 0x20
	offsetArea    = 0x28
)

func setParms(rc, rrc uint16, text string, cause error) error {
	return &Error{Command: CommandSetParms, RC: rc, RRC: rrc, Text: text, Cause: cause}
}

func verify(rrc uint16, text string) error {
	return &Error{Command: CommandVerify, RC: rcVerify, RRC: rrc, Text: text}
}

// translate turns what package se cannot read into the answer of who would stumble over it. What no machine would even
// load stays as it is.
func translate(err error) error {
	var f *se.FormatError
	if !errors.As(err, &f) {
		return err
	}
	switch {
	case f.Part == se.PartIPIB:
		return &Error{Command: CommandSetIPIB, RC: rcInvalidIPIB, Text: "the IPIB is not valid", Cause: err}
	case f.Part == se.PartArgs:
		return setParms(rcHeader, rrcLength, "header length mismatch", err)
	case f.Part != se.PartHeader:
		return err
	}
	switch f.Offset {
	case offsetVersion:
		return setParms(rcVersion, rrcVersion, "header version mismatch", err)
	case offsetSize:
		return setParms(rcHeader, rrcLength, "header length mismatch", err)
	case offsetSlots:
		return setParms(rcHeader, rrcNoSlots, "no key slots, or too many", err)
	case offsetArea:
		return setParms(rcHeader, rrcEncrypted, "size of the encrypted area is not valid", err)
	default:
		return setParms(rcHeader, rrcNotPublic, "header corrupt", err)
	}
}
