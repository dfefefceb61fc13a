// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of a request. ttrpc itself bounds a whole request to 4 MiB; these keep that from growing on decoding.
const (
	// maxFields bounds the fields of a request, nested ones included.
	maxFields = 1 << 16
	// maxItems bounds a list or map.
	maxItems = 1 << 14
	// maxString bounds a string in bytes; it is what Linux takes as one argument (MAX_ARG_STRLEN).
	maxString = 128 << 10
	// maxPolicy bounds the policy of SetPolicy in bytes.
	maxPolicy = 4 << 20
)

// itemLimit returns the limit of a list or map.
func itemLimit(fd protoreflect.FieldDescriptor) int {
	switch fd.FullName() {
	case "ttrpc.Request.metadata": // none of it is used
		return 64
	case "grpc.CreateContainerRequest.storages", "grpc.CreateContainerRequest.devices", "grpc.CreateContainerRequest.shared_mounts",
		"grpc.CreateSandboxRequest.storages", "grpc.CreateSandboxRequest.kernel_modules", "grpc.UpdateEphemeralMountsRequest.storages":
		return 256
	case "grpc.Storage.driver_options", "grpc.Storage.options", "grpc.Mount.options", "grpc.CreateSandboxRequest.dns",
		"types.Interface.IPAddresses":
		return 1024
	default:
		return maxItems
	}
}

func stringLimit(fd protoreflect.FieldDescriptor) int {
	if fd.FullName() == "grpc.SetPolicyRequest.policy" {
		return maxPolicy
	}
	return maxString
}

// checkWire walks an encoded message without decoding it and reports the first thing that no honest shim sends: too
// many fields, too long lists or strings, a NUL byte in a string, a field twice that is no list.
func checkWire(raw []byte, md protoreflect.MessageDescriptor) error {
	w := wireWalk{budget: maxFields}
	return w.message(raw, md)
}

type wireWalk struct{ budget int }

func (w *wireWalk) message(raw []byte, md protoreflect.MessageDescriptor) error {
	counts := make(map[protowire.Number]int)
	for len(raw) > 0 {
		if w.budget--; w.budget < 0 {
			return fmt.Errorf("more than %d fields", maxFields)
		}
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return fmt.Errorf("malformed encoding: %w", protowire.ParseError(n))
		}
		raw = raw[n:]
		n = protowire.ConsumeFieldValue(num, typ, raw)
		if n < 0 {
			return fmt.Errorf("malformed encoding: %w", protowire.ParseError(n))
		}
		value := raw[:n]
		raw = raw[n:]
		fd := md.Fields().ByNumber(num)
		if fd == nil {
			continue
		}
		counts[num]++
		if err := w.field(fd, typ, value, counts[num]); err != nil {
			return err
		}
	}
	return nil
}

// field checks one occurrence of a field, the count-th in its message.
func (w *wireWalk) field(fd protoreflect.FieldDescriptor, typ protowire.Type, value []byte, count int) error {
	switch repeated := fd.IsList() || fd.IsMap(); {
	case repeated && count > itemLimit(fd):
		return fmt.Errorf("%s has more than %d items", fd.FullName(), itemLimit(fd))
	case !repeated && count > 1:
		return fmt.Errorf("%s is given more than once", fd.FullName())
	}
	if typ != protowire.BytesType {
		return nil
	}
	content, _ := protowire.ConsumeBytes(value)
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return w.message(content, fd.Message())
	case protoreflect.StringKind:
		if len(content) > stringLimit(fd) {
			return fmt.Errorf("%s is longer than %d bytes", fd.FullName(), stringLimit(fd))
		}
		if bytes.IndexByte(content, 0) >= 0 {
			return fmt.Errorf("%s contains a NUL byte", fd.FullName())
		}
	case protoreflect.BytesKind:
	default: // a packed list of numbers, each at least one byte
		if len(content) > itemLimit(fd) {
			return fmt.Errorf("%s has more than %d bytes of packed numbers", fd.FullName(), itemLimit(fd))
		}
	}
	return nil
}
