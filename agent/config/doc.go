// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package config reads the agent's settings where no sealed boot config exists: on the kernel command line, in a TOML
// file and in environment variables, with the names, defaults and precedence of the agent of Kata Containers 4.1.
// docs/configuration.md describes them for operators; a test compares its tables with the settings of this package.
//
// Whoever writes the command line or the file decides what the agent does, and in a guest that is the host. So nothing
// here may loosen what a sealed boot config holds: a guest that has one must not call Load at all. What is read is
// bounded all the same, so that it can at worst be refused.
//
// The package imports nothing of this project.
package config
