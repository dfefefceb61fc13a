// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"
)

const pid = 42

// families are all that Kata's documentation (docs/design/kata-2-0-metrics.md, "Kata agent metrics" and "Kata guest OS
// metrics") lists and its agent (src/agent/src/metrics.rs) sends, and ours. None is left out. The documentation's other
// families, kata_firecracker_*, kata_hypervisor_*, kata_monitor_* and kata_shim_*, are measured on the host.
var families = map[string]dto.MetricType{
	"kata_agent_io_stat":                        dto.MetricType_GAUGE,
	"kata_agent_proc_stat":                      dto.MetricType_GAUGE,
	"kata_agent_proc_status":                    dto.MetricType_GAUGE,
	"kata_agent_process_cpu_seconds_total":      dto.MetricType_COUNTER,
	"kata_agent_process_max_fds":                dto.MetricType_GAUGE,
	"kata_agent_process_open_fds":               dto.MetricType_GAUGE,
	"kata_agent_process_resident_memory_bytes":  dto.MetricType_GAUGE,
	"kata_agent_process_start_time_seconds":     dto.MetricType_GAUGE,
	"kata_agent_process_virtual_memory_bytes":   dto.MetricType_GAUGE,
	"kata_agent_scrape_count":                   dto.MetricType_COUNTER,
	"kata_agent_threads":                        dto.MetricType_GAUGE,
	"kata_agent_total_rss":                      dto.MetricType_GAUGE,
	"kata_agent_total_time":                     dto.MetricType_GAUGE,
	"kata_agent_total_vm":                       dto.MetricType_GAUGE,
	"kata_guest_cpu_time":                       dto.MetricType_GAUGE,
	"kata_guest_diskstat":                       dto.MetricType_GAUGE,
	"kata_guest_filesystem_bytes":               dto.MetricType_GAUGE,
	"kata_guest_filesystem_inodes":              dto.MetricType_GAUGE,
	"kata_guest_load":                           dto.MetricType_GAUGE,
	"kata_guest_meminfo":                        dto.MetricType_GAUGE,
	"kata_guest_netdev_stat":                    dto.MetricType_GAUGE,
	"kata_guest_tasks":                          dto.MetricType_GAUGE,
	"kata_guest_vm_stat":                        dto.MetricType_GAUGE,
	"cloister_agent_build_info":                 dto.MetricType_GAUGE,
	"cloister_agent_image_fetched_bytes_total":  dto.MetricType_COUNTER,
	"cloister_agent_image_layers_reused_total":  dto.MetricType_COUNTER,
	"cloister_agent_image_pull_bytes":           dto.MetricType_GAUGE,
	"cloister_agent_image_pull_layers":          dto.MetricType_GAUGE,
	"cloister_agent_image_pulls_active":         dto.MetricType_GAUGE,
	"cloister_agent_image_pulls_total":          dto.MetricType_COUNTER,
	"cloister_agent_image_store_bytes":          dto.MetricType_GAUGE,
	"cloister_agent_image_unpacked_bytes_total": dto.MetricType_COUNTER,
	"cloister_agent_containers":                 dto.MetricType_GAUGE,
	"cloister_agent_processes":                  dto.MetricType_GAUGE,
	"cloister_agent_rpc_duration_seconds":       dto.MetricType_HISTOGRAM,
}

func fakeStatfs(path string, s *unix.Statfs_t) error {
	if path == "/run/broken" {
		return unix.EIO
	}
	*s = unix.Statfs_t{Bsize: 4096, Blocks: 100, Bfree: 40, Files: 50, Ffree: 45}
	return nil
}

func testMetrics(t *testing.T, procRoot string) *Metrics {
	t.Helper()
	m, err := newMetrics(Options{
		ProcRoot: procRoot, PID: pid, Version: "1.2.3", Methods: []string{"/grpc.AgentService/CreateContainer"},
		Containers: func() int { return 2 }, Processes: func() int { return 5 },
		Images: func() Images {
			return Images{
				Active:  []ImagePull{{Digest: "sha256:11", Fetched: 1, Total: 2, Unpacked: 3, LayersDone: 4, Layers: 5}, {Digest: "sha256:22"}},
				Fetched: 6, Unpacked: 7, Pulled: 8, Cached: 9, Failed: 10, Reused: 11, Stored: 12, Total: 13, Available: 14,
			}
		},
	}, fakeStatfs)
	if err != nil {
		t.Fatal(err)
	}
	m.ObserveRPC("/grpc.AgentService/CreateContainer", "OK", 30*time.Millisecond)
	return m
}

func text(t *testing.T, m *Metrics) string {
	t.Helper()
	s, err := m.Text()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(t *testing.T, s string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	got, err := p.TextToMetricFamilies(strings.NewReader(s))
	if err != nil {
		t.Fatalf("%v in\n%s", err, s)
	}
	return got
}

var update = flag.Bool("update", false, "write the golden file anew")

func TestGolden(t *testing.T) {
	got := text(t, testMetrics(t, "testdata/proc"))
	got = strings.NewReplacer(runtime.Version(), "GOVERSION", `goarch="`+runtime.GOARCH+`"`, `goarch="GOARCH"`,
		strconv.FormatFloat(float64(4500*os.Getpagesize()), 'g', -1, 64), "RSS").Replace(got)
	const golden = "testdata/metrics.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestFamilies(t *testing.T) {
	got := parse(t, text(t, testMetrics(t, "testdata/proc")))
	for name, typ := range families {
		f := got[name]
		if f == nil {
			t.Errorf("no %s", name)
			continue
		}
		if f.GetType() != typ {
			t.Errorf("%s is a %v, want %v", name, f.GetType(), typ)
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
	}
	for name := range got {
		if _, ok := families[name]; !ok {
			t.Errorf("%s is not in the list", name)
		}
	}
}

func copyTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/proc")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMissingAndBrokenFiles(t *testing.T) {
	for _, tt := range []struct {
		file string
		gone []string
	}{
		{"loadavg", []string{"kata_guest_load", "kata_guest_tasks"}},
		{"vmstat", []string{"kata_guest_vm_stat"}},
		{"meminfo", []string{"kata_guest_meminfo"}},
		{"stat", []string{"kata_guest_cpu_time", "kata_agent_process_start_time_seconds"}},
		{"diskstats", []string{"kata_guest_diskstat"}},
		{"net/dev", []string{"kata_guest_netdev_stat"}},
		{"42/io", []string{"kata_agent_io_stat"}},
		{"42/status", []string{"kata_agent_proc_status"}},
		{"42/mountinfo", []string{"kata_guest_filesystem_bytes", "kata_guest_filesystem_inodes"}},
		{"42/limits", []string{"kata_agent_process_max_fds"}},
	} {
		for how, damage := range map[string]func(string) error{
			"missing": os.Remove,
			"broken":  func(p string) error { return os.WriteFile(p, []byte("kaputt x y z w\nvda: 5 \xff x\n"), 0o600) },
		} {
			t.Run(tt.file+"/"+how, func(t *testing.T) {
				dir := copyTree(t)
				if err := damage(filepath.Join(dir, tt.file)); err != nil {
					t.Fatal(err)
				}
				got := parse(t, text(t, testMetrics(t, dir)))
				gone := map[string]bool{}
				for _, name := range tt.gone {
					gone[name] = true
				}
				for name := range families {
					switch {
					case got[name] == nil && !gone[name]:
						t.Errorf("%s is gone too", name)
					case got[name] != nil && gone[name] && how == "missing":
						t.Errorf("%s is there, out of nothing", name)
					}
				}
			})
		}
	}
}

func TestNoProcess(t *testing.T) {
	dir := copyTree(t)
	if err := os.RemoveAll(filepath.Join(dir, "42")); err != nil {
		t.Fatal(err)
	}
	got := parse(t, text(t, testMetrics(t, dir)))
	if got["kata_agent_threads"] != nil || got["kata_guest_load"] == nil {
		t.Error("want the guest's families without the agent's")
	}
	if _, err := New(Options{ProcRoot: filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a proc file system: %v", err)
	}
}

func TestScrapesAreCounted(t *testing.T) {
	m := testMetrics(t, "testdata/proc")
	for want := range 3 {
		got := parse(t, text(t, m))["kata_agent_scrape_count"].GetMetric()[0].GetCounter().GetValue()
		if got != float64(want+1) {
			t.Errorf("count is %v after %d scrapes", got, want+1)
		}
	}
}

// A host that calls methods and gets codes at will makes no labels.
func TestLabelsOfRequestsAreFixed(t *testing.T) {
	m := testMetrics(t, "testdata/proc")
	for i := range 1000 {
		m.ObserveRPC(fmt.Sprintf("/grpc.AgentService/Method%d", i), fmt.Sprintf("Code(%d)", i), time.Second)
	}
	got := parse(t, text(t, m))["cloister_agent_rpc_duration_seconds"].GetMetric()
	if len(got) != 2 {
		t.Fatalf("%d series, want the known method and other", len(got))
	}
	for _, metric := range got {
		for _, l := range metric.GetLabel() {
			if l.GetName() == "method" && l.GetValue() == "other" && metric.GetHistogram().GetSampleCount() != 1000 {
				t.Errorf("other was counted %d times, want 1000", metric.GetHistogram().GetSampleCount())
			}
		}
	}
}

// Interfaces, disks and mounts can be many and be called anything; the text stays small and well-formed.
func TestBounds(t *testing.T) {
	dir := copyTree(t)
	var net, disks, mounts, vmstat, stat strings.Builder
	net.WriteString("a\nb\n")
	stat.WriteString("cpu  1 1 1 1 1 1 1 1 1 1\n")
	for i := range 5000 {
		fmt.Fprintf(&net, "if%d\xff\": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", i)
		fmt.Fprintf(&disks, "253 %d vd%d 11 12 13 14 21 22 23 24 31 32 33 41 42 43 44 51 52\n", i, i/2)
		if i < 500 { // procfs reads 1 MiB
			fmt.Fprintf(&mounts, "%d 1 253:%d / /run/%s/%d rw - ext4 /dev/x\xff%d rw\n", i, i, strings.Repeat("x", 1000), i, i)
		}
		fmt.Fprintf(&vmstat, "v%d 1\n", i)
		fmt.Fprintf(&stat, "cpu%d 1 1 1 1 1 1 1 1 1 1\n", i)
	}
	for name, content := range map[string]string{
		"net/dev": net.String(), "diskstats": disks.String(), "42/mountinfo": mounts.String(), "vmstat": vmstat.String(), "stat": stat.String(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := text(t, testMetrics(t, dir))
	got := parse(t, s)
	for name, limit := range map[string]int{
		"kata_guest_netdev_stat": maxDevices * 16, "kata_guest_diskstat": maxDevices * 17,
		"kata_guest_filesystem_bytes": maxMounts * 3, "kata_guest_vm_stat": maxVMStat, "kata_guest_cpu_time": (maxDevices + 1) * 10,
	} {
		if n := len(got[name].GetMetric()); n == 0 || n > limit {
			t.Errorf("%d of %s, want 1 to %d", n, name, limit)
		}
	}
	t.Logf("%d bytes", len(s))
}

// Pulls can be many, and the same image from several places; the text stays small and well-formed.
func TestPullsAreBounded(t *testing.T) {
	images := Images{}
	for i := range 1000 {
		images.Active = append(images.Active, ImagePull{Digest: fmt.Sprint("sha256:", i/2), Fetched: int64(i)})
	}
	m, err := New(Options{ProcRoot: "testdata/proc", Images: func() Images { return images }})
	if err != nil {
		t.Fatal(err)
	}
	got := parse(t, text(t, m))
	if n := len(got["cloister_agent_image_pull_bytes"].GetMetric()); n != maxPulls/2*3 {
		t.Errorf("%d values, want three for each of the first %d digests", n, maxPulls/2)
	}
	if n := got["cloister_agent_image_pulls_active"].GetMetric()[0].GetGauge().GetValue(); n != 1000 {
		t.Errorf("%v pulls, want all", n)
	}
	if n := len(got["cloister_agent_image_store_bytes"].GetMetric()); n != 1 {
		t.Errorf("%d values of space, want that of the layers alone", n)
	}
}

func TestOnThisMachine(t *testing.T) {
	m, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := parse(t, text(t, m))
	for _, name := range []string{"kata_agent_threads", "kata_agent_process_open_fds", "kata_guest_meminfo", "kata_guest_vm_stat"} {
		if got[name] == nil {
			t.Errorf("no %s", name)
		}
	}
}
