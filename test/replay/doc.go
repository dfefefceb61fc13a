// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package replay plays the part of the Kata shim: it sends an agent the requests of a sequence, which is data, and says
// where the answers differ from what the sequence expects.
//
// The sequences lie in testdata as JSON, in the order and form in which the shim of Kata 4.1 sends them with a remote
// hypervisor and forced guest pull:
//
//	sequence/  what is tested, one story per file
//	sandbox/   how the sandbox of a story begins and ends
//	part/      steps that many stories share (step "do")
//	base/      requests that many steps share (field "from"): the step's request is merged into them
//
// In every text ${name} is a variable and ${base64:TEXT} is TEXT in the form of a bytes field. In a request, a field
// whose name ends in "+" is appended to the list of the base. In an expected answer only the given fields count;
// {"$at_least": n} is a lower bound, {"$absent": true} is a field that is not set.
package replay
