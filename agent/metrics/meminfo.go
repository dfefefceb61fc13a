// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package metrics

import "github.com/prometheus/procfs"

// meminfoItems has sizes in bytes and huge pages by number. What the kernel does not have is left out.
func meminfoItems(m procfs.Meminfo) []item {
	all := []struct {
		name  string
		value *uint64
	}{
		{"mem_total", m.MemTotalBytes},
		{"mem_free", m.MemFreeBytes},
		{"mem_available", m.MemAvailableBytes},
		{"buffers", m.BuffersBytes},
		{"cached", m.CachedBytes},
		{"swap_cached", m.SwapCachedBytes},
		{"active", m.ActiveBytes},
		{"inactive", m.InactiveBytes},
		{"active_anon", m.ActiveAnonBytes},
		{"inactive_anon", m.InactiveAnonBytes},
		{"active_file", m.ActiveFileBytes},
		{"inactive_file", m.InactiveFileBytes},
		{"unevictable", m.UnevictableBytes},
		{"mlocked", m.MlockedBytes},
		{"swap_total", m.SwapTotalBytes},
		{"swap_free", m.SwapFreeBytes},
		{"dirty", m.DirtyBytes},
		{"writeback", m.WritebackBytes},
		{"anon_pages", m.AnonPagesBytes},
		{"mapped", m.MappedBytes},
		{"shmem", m.ShmemBytes},
		{"slab", m.SlabBytes},
		{"s_reclaimable", m.SReclaimableBytes},
		{"s_unreclaim", m.SUnreclaimBytes},
		{"kernel_stack", m.KernelStackBytes},
		{"page_tables", m.PageTablesBytes},
		{"nfs_unstable", m.NFSUnstableBytes},
		{"bounce", m.BounceBytes},
		{"writeback_tmp", m.WritebackTmpBytes},
		{"commit_limit", m.CommitLimitBytes},
		{"committed_as", m.CommittedASBytes},
		{"vmalloc_total", m.VmallocTotalBytes},
		{"vmalloc_used", m.VmallocUsedBytes},
		{"vmalloc_chunk", m.VmallocChunkBytes},
		{"hardware_corrupted", m.HardwareCorruptedBytes},
		{"anon_hugepages", m.AnonHugePagesBytes},
		{"shmem_hugepages", m.ShmemHugePagesBytes},
		{"shmem_pmd_mapped", m.ShmemPmdMappedBytes},
		{"cma_total", m.CmaTotalBytes},
		{"cma_free", m.CmaFreeBytes},
		{"hugepages_total", m.HugePagesTotal},
		{"hugepages_free", m.HugePagesFree},
		{"hugepages_rsvd", m.HugePagesRsvd},
		{"hugepages_surp", m.HugePagesSurp},
		{"hugepagesize", m.HugepagesizeBytes},
		{"direct_map_4k", m.DirectMap4kBytes},
		{"direct_map_2M", m.DirectMap2MBytes},
		{"direct_map_1G", m.DirectMap1GBytes},
		{"hugetlb", m.HugetlbBytes},
		{"per_cpu", m.PercpuBytes},
	}
	var items []item
	for _, it := range all {
		if it.value != nil {
			items = append(items, item{it.name, float64(*it.value)})
		}
	}
	return items
}
