// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// services are those of an agent, as types.
func services() []reflect.Type {
	return []reflect.Type{reflect.TypeFor[pb.AgentServiceService](), reflect.TypeFor[pb.HealthService]()}
}

// messageOf returns an empty request of an RPC.
func messageOf(name string) (proto.Message, error) {
	for _, service := range services() {
		if m, ok := service.MethodByName(name); ok {
			request, ok := reflect.TypeAssert[proto.Message](reflect.New(m.Type.In(1).Elem()))
			if !ok {
				return nil, fmt.Errorf("%s takes no message", name)
			}
			return request, nil
		}
	}
	return nil, fmt.Errorf("there is no RPC %q", name)
}

// requestOf makes the request of an RPC out of a JSON value.
func requestOf(name string, value any, vars map[string]string) (proto.Message, error) {
	request, err := messageOf(name)
	if err != nil || value == nil {
		return request, err
	}
	expanded, err := expandAll(value, vars)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	data, err := json.Marshal(expanded)
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(data, request); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	return request, nil
}

// call sends a request and returns the answer, or the error of the RPC.
func call(ctx context.Context, c *client.Client, name string, request proto.Message) (proto.Message, error) {
	var method reflect.Value
	for _, service := range []reflect.Value{reflect.ValueOf(c.Agent()), reflect.ValueOf(c.Health())} {
		if m := service.MethodByName(name); m.IsValid() {
			method = m
			break
		}
	}
	out := method.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)})
	if err, ok := reflect.TypeAssert[error](out[1]); ok {
		return nil, err
	}
	response, ok := reflect.TypeAssert[proto.Message](out[0])
	if !ok {
		return nil, errors.New("the answer is no message")
	}
	return response, nil
}

// plain returns a message as a JSON value in which every field has its name in the schema and is there.
func plain(m proto.Message) (any, error) {
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var value any
	return value, decode(data, &value)
}

// parseCode returns the status code of a name as NOT_FOUND; none is OK.
func parseCode(name string) (codes.Code, error) {
	var c codes.Code
	if name == "" {
		return codes.OK, nil
	}
	if err := c.UnmarshalJSON([]byte(`"` + name + `"`)); err != nil {
		return c, fmt.Errorf("%q is no status code", name)
	}
	return c, nil
}

// codeName is the name that parseCode knows.
func codeName(c codes.Code) string {
	for _, name := range []string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
		"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
		"UNAUTHENTICATED",
	} {
		if parsed, err := parseCode(name); err == nil && parsed == c {
			return name
		}
	}
	return c.String()
}

func describe(err error) string {
	if err == nil {
		return "OK"
	}
	return fmt.Sprintf("%s %q", codeName(status.Code(err)), shorten(status.Convert(err).Message()))
}
