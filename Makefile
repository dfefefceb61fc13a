# SPDX-License-Identifier: Apache-2.0
# Copyright The Cloister Authors.

ARCH    ?= s390x
GUESTS  := s390x amd64
CACHE   ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/cloister
FUZZTIME ?= 30s
SOAK    ?= 10m
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(CACHE)/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)

export CLOISTER_CACHE := $(CACHE)
# What verifies the signatures of images is built with a tag (see image/sign); without it such a policy is refused.
TAGS := -tags=containers_image_openpgp
export GOFLAGS := $(filter-out $(TAGS),$(shell go env GOFLAGS 2>/dev/null)) $(TAGS)
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags='-s -w'

.DEFAULT_GOAL := help
.PHONY: help build demo setup test test-unit test-guest test-e2e bench soak fuzz lint fmt generate clean

help: ## show this list
	@echo 'Cloister: the guest side of confidential containers. Targets (ARCH=s390x or amd64):'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'

build: ## build bin/cloister and the agent for each guest architecture
	@mkdir -p bin
	$(GO_BUILD) -o bin/cloister ./cmd/cloister
	@for a in $(GUESTS); do GOARCH=$$a $(GO_BUILD) -o bin/cloister-agent-$$a ./cmd/cloister-agent && echo "built bin/cloister-agent-$$a"; done

bin/cloister: FORCE
	@mkdir -p bin
	@$(GO_BUILD) -o $@ ./cmd/cloister
FORCE:

setup: bin/cloister ## fetch and build what the test bed needs for ARCH into CACHE
	bin/cloister setup --arch $(ARCH) --cache $(CACHE)

demo: ## run the main job on an emulated machine of ARCH, every step with its time
	@go run ./test/demo --arch $(ARCH)

test: ## every test, both guest architectures (what CI runs)
	@$(MAKE) --no-print-directory setup ARCH=all
	@$(MAKE) --no-print-directory test-unit REQUIRE_QEMU=1
	@for a in $(GUESTS); do $(MAKE) --no-print-directory test-guest test-e2e ARCH=$$a || exit 1; done
	@echo 'make test: all levels passed on $(GUESTS)'

test-unit: ## tests that need no guest, with the race detector
	REQUIRE_QEMU=$(REQUIRE_QEMU) go test -race $$(go list ./... | grep -v -e /test/e2e -e /internal/guesttest)
	GOFLAGS= go test -race ./image/sign # its twin without the tag

test-guest: setup ## kernel-facing tests inside a guest of ARCH
	REQUIRE_QEMU=1 CLOISTER_GUEST_ARCH=$(ARCH) go test -count=1 -timeout 30m ./internal/guesttest

test-e2e: setup ## whole-system stories and attacks in a guest of ARCH
	REQUIRE_QEMU=1 CLOISTER_E2E_ARCH=$(ARCH) go test -count=1 -parallel 2 -timeout 40m ./test/e2e

bench: setup ## measure the agent as a process here (needs root), then boot, pull, containers and sizes in a guest of ARCH
	@go run ./test/bench --native
	@go run ./test/bench --images
	@go run ./test/bench --arch $(ARCH)

soak: ## long campaigns (runtimes killed, leaks, all fuzz targets), bounded by SOAK; says how many of each ran
	@$(MAKE) --no-print-directory setup ARCH=$$(go env GOARCH)
	@go run ./test/soak --for $(SOAK)

fuzz: ## run every fuzz target for FUZZTIME each
	@go list ./... | while read -r p; do \
	  for f in $$(go test -list '^Fuzz' "$$p" | grep '^Fuzz' || true); do \
	    echo "fuzz $$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$p" || exit 1; done; done

lint: $(GOLANGCI_LINT) setup ## static checks, and that generated code and go.mod are up to date
	$(GOLANGCI_LINT) run ./...
	GOARCH=s390x $(GOLANGCI_LINT) run ./...
	GOFLAGS= $(GOLANGCI_LINT) run --build-tags '' ./image/sign/...
	go mod tidy -diff
	go generate ./...
	git diff --exit-code -- '*.pb.go'

$(GOLANGCI_LINT):
	@mkdir -p $(@D)/build
	GOBIN=$(@D)/build go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv $(@D)/build/golangci-lint $@

fmt: $(GOLANGCI_LINT) ## format the sources
	$(GOLANGCI_LINT) fmt

generate: ## regenerate the wire code (needs protoc: Debian protobuf-compiler and libprotobuf-dev)
	go generate ./...

clean: ## remove what was built here; the cache stays
	rm -rf bin out
