// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"log/slog"
	"time"
)

// Levels of the Kata names that slog has none for.
const (
	// levelTrace is below slog.LevelDebug.
	levelTrace = slog.LevelDebug - 4
	// levelCritical is above slog.LevelError. The names critical, fatal and panic stand for it; none ends the agent.
	levelCritical = slog.LevelError + 4
)

// Config holds the settings that mean something to this agent.
type Config struct {
	// LogLevel is the least level that is logged.
	LogLevel slog.Level
	// LogPort is the vsock port on which logs are offered besides standard error; 0 means none.
	LogPort uint32
	// DebugConsole opens a shell for whoever connects.
	DebugConsole bool
	// DebugConsolePort is the vsock port of the debug console; 0 means the machine's console.
	DebugConsolePort uint32
	// Tracing writes an OpenTelemetry span of each request to the log.
	Tracing bool
	// ServerAddr is where the agent API is served: vsock://CID:PORT, unix://PATH or unix://@NAME. Load checks the scheme
	// alone, the listener the rest.
	ServerAddr string
	// ContainerPipeSize is the capacity in bytes of the pipes of a container's standard streams, not negative; 0 leaves
	// the kernel's default.
	ContainerPipeSize int32
	// HotplugTimeout bounds the wait for a device that the host adds. Positive, as are all time-outs here.
	HotplugTimeout time.Duration
	// CDITimeout bounds the wait for the CDI specification of a device.
	CDITimeout time.Duration
	// ImagePullTimeout bounds the pull of one image.
	ImagePullTimeout time.Duration
	// LaunchProcessTimeout bounds the wait until a helper process of the guest serves.
	LaunchProcessTimeout time.Duration
	// CDHTimeout bounds one request for a secret or a key.
	CDHTimeout time.Duration
	// UnifiedCgroupHierarchy asks for cgroup v2 alone.
	UnifiedCgroupHierarchy bool
	// HTTPSProxy is the URL of the proxy for HTTPS requests, or empty. It may hold a password: do not log it.
	HTTPSProxy string
	// NoProxy lists, separated by commas, what is reached without the proxy.
	NoProxy string
	// ImagePolicyFile and ImageRegistryAuth are URIs (file:///, kbs:///) of a policy for images and of credentials for
	// registries, or empty; SignatureVerification refuses every image where there is no such policy.
	ImagePolicyFile, ImageRegistryAuth string
	SignatureVerification              bool
	// PolicyFile is the path of the policy that decides on requests; empty means the default path.
	PolicyFile string
	// SecureStorageIntegrity protects the integrity of trusted ephemeral storage, beside its confidentiality.
	SecureStorageIntegrity bool
	// VisibleCDIDevices makes a container's environment variable VISIBLE_CDI_DEVICES request devices.
	VisibleCDIDevices bool
}

// defaults are those of Kata 4.1.
func defaults() Config {
	return Config{
		LogLevel:               slog.LevelInfo,
		ServerAddr:             "vsock://-1:1024",
		HotplugTimeout:         3 * time.Second,
		CDITimeout:             100 * time.Second,
		ImagePullTimeout:       1200 * time.Second,
		LaunchProcessTimeout:   6 * time.Second,
		CDHTimeout:             50 * time.Second,
		SecureStorageIntegrity: true,
	}
}

// setting is one setting under its names in the three sources; a source that does not know it has an empty name.
type setting struct {
	param, key, env string
	// value is nil for a setting that has no meaning here.
	value value
	// always says that the kernel parameter counts beside a configuration file, too, as whoever reads it in a guest of Kata's
	// looks at no file. What is there in another form is an error: without it more images would be used.
	always bool
	// instead says what happens instead of what a setting without a value asks for.
	instead string
	// harmless is the one text of a setting without a value that asks for what happens anyway, so is not warned about.
	harmless string
}

// settings are all settings that Kata knows; those with a value write to c.
func settings(c *Config, cgroupNoV1 *bool) []setting {
	list := []setting{
		{param: "agent.log", key: "log_level", env: "KATA_AGENT_LOG_LEVEL", value: levelValue{&c.LogLevel}},
		{param: "agent.log_vport", key: "log_vport", value: portValue{&c.LogPort}},
		{param: "agent.debug_console", key: "debug_console", value: flagValue{&c.DebugConsole}},
		{param: "agent.debug_console_vport", key: "debug_console_vport", value: portValue{&c.DebugConsolePort}},
		{param: "agent.trace", key: "tracing", env: "KATA_AGENT_TRACING", value: boolValue{to: &c.Tracing, bare: true}},
		{param: "agent.server_addr", key: "server_addr", env: "KATA_AGENT_SERVER_ADDR", value: addressValue{&c.ServerAddr}},
		{param: "agent.container_pipe_size", key: "container_pipe_size", value: sizeValue{&c.ContainerPipeSize}},
		{param: "agent.hotplug_timeout", key: "hotplug_timeout", value: timeoutValue{&c.HotplugTimeout}},
		{param: "agent.cdi_timeout", key: "cdi_timeout", value: timeoutValue{&c.CDITimeout}},
		{param: "agent.image_pull_timeout", key: "image_pull_timeout", value: timeoutValue{&c.ImagePullTimeout}},
		{param: "agent.launch_process_timeout", key: "launch_process_timeout", value: timeoutValue{&c.LaunchProcessTimeout}},
		{param: "agent.cdh_api_timeout", key: "cdh_api_timeout", value: timeoutValue{&c.CDHTimeout}},
		{param: "agent.visible_cdi_devices", key: "visible_cdi_devices", value: boolValue{to: &c.VisibleCDIDevices}},
		{param: "systemd.unified_cgroup_hierarchy", key: "unified_cgroup_hierarchy", value: boolValue{to: &c.UnifiedCgroupHierarchy}},
		{param: "cgroup_no_v1", value: allValue{cgroupNoV1}},
		{param: "agent.https_proxy", key: "https_proxy", value: proxyValue{&c.HTTPSProxy}},
		{param: "agent.no_proxy", key: "no_proxy", value: textValue{to: &c.NoProxy}},
		{param: "agent.image_policy_file", key: "image_policy_file", value: textValue{to: &c.ImagePolicyFile}, always: true},
		{param: "agent.image_registry_auth", key: "image_registry_auth", value: textValue{to: &c.ImageRegistryAuth}, always: true},
		{param: "agent.enable_signature_verification", key: "enable_signature_verification", value: boolValue{to: &c.SignatureVerification, strict: true}, always: true},
		{key: "policy_file", env: "KATA_AGENT_POLICY_FILE", value: textValue{to: &c.PolicyFile, emptyText: true}},
		{param: "agent.secure_storage_integrity", key: "secure_storage_integrity", value: boolValue{to: &c.SecureStorageIntegrity, strict: true}},
	}
	return append(list, ignoredSettings()...)
}

// ignoredSettings are those that Kata's agent takes and that have no meaning for this one.
func ignoredSettings() []setting {
	const inProcess = "secrets, keys and images are handled inside the agent, which starts no guest components"
	list := []setting{
		{param: "agent.devmode", key: "dev_mode", instead: "it changes nothing, nor does it in Kata's agent"},
		{param: "agent.passfd_listener_port", key: "passfd_listener_port", instead: "standard streams are served by the agent API alone", harmless: "0"},
		{param: "agent.guest_components_rest_api", key: "guest_components_rest_api", instead: inProcess},
		{param: "agent.guest_components_procs", key: "guest_components_procs", instead: inProcess},
		{env: "KATA_ATTESTER_VARIANT", instead: inProcess},
	}
	for _, name := range []string{
		"enable", "memcg_disable", "memcg_swap", "memcg_swappiness_max", "memcg_period_secs", "memcg_period_psi_percent_limit",
		"memcg_eviction_psi_percent_limit", "memcg_eviction_run_aging_count_min", "compact_disable", "compact_period_secs",
		"compact_period_psi_percent_limit", "compact_psi_percent_limit", "compact_sec_max", "compact_order", "compact_threshold",
		"compact_force_times",
	} {
		list = append(list, setting{
			param: "agent.mem_agent_" + name, key: "mem_agent_" + name,
			instead: "there is no memory agent; the kernel reclaims and compacts memory by itself",
		})
	}
	return list
}
