#!/bin/sh
# Compiles the .proto files. Needs protoc and its well-known types (Debian: protobuf-compiler, libprotobuf-dev); the
# plugins are tools of go.mod.
set -eu
cd "$(dirname "$0")/../.."
module=github.com/cloister-cc/cloister
exec protoc -I . \
	--plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
	--plugin=protoc-gen-go-ttrpc="$(go tool -n protoc-gen-go-ttrpc)" \
	--go_out=. --go_opt=module="$module" \
	--go-ttrpc_out=. --go-ttrpc_opt=module="$module" \
	rpc/pb/*.proto rpc/pb/types/*.proto
