"""Keys of the options that describe the machine itself. `option keys | verdict | note`, a line for each note; of what is
refused also `| values` that ask for what is here anyway."""

from __future__ import annotations

__all__ = ["TABLE"]

TABLE = """
--cpus boot | differs | 1 to 4096, or what KVM allows (8192 there); `--cpus 2` is short for it; 0 is refused: nothing would run
--cpus max | differs | by `vm.resize(cpus=)`; refused for arm64 guests, which have `boot`
--cpus topology | differs | more than two threads a core as well
--cpus max_phys_bits | differs | 32 or more; unset: 46, as there; the second PCI segment stays where the host's paging reaches
--cpus affinity | differs | a vCPU that is not there is passed over, as there, and remarked on in the log
--cpus nested | differs | off unless asked for
--cpus features | differs | `amx`, `invtsc` (not there), and `pmu`: counters, there unasked
--cpus vcpu_nice | ours | 0 to 19: how far vCPU threads stand back behind the event loop; 20: they run in idle times only
--cpus kvm_hyperv | differs | what this KVM has, and its own leaves from 0x40000100 on; refused where KVM has none
--cpus core_scheduling | differs | unset: off (vm there); refused where SMT is on and the kernel has none (a warning there)
--cpus profile | refused | processor models serve live migration, which is not there | host
--memory size | differs | at least 2M, or 0 with zones; suffixes K, M, G, T; `--memory 512M` is short for it
--memory shared | differs | unset: on by itself where a vhost-user device needs it; off refuses such devices, as in the reference
--memory hugepages | same |
--memory prefault | same |
--memory thp | differs | unset: on from 64 MiB on; for smaller guests it has to be asked for
--memory file | same | without effect, as there; `--memory-zone file=` has one
--memory mergeable | differs | refused with shared=on and hugepages=on, whose pages the kernel does not merge
--memory hotplug_method | differs | acpi, virtio-mem; arm64 guests take the latter alone
--memory hotplug_size | differs | in steps of 128M; by virtio-mem a multiple of that; it comes and goes by `vm.resize(memory=)`
--memory hotplugged_size | differs | modules of 128M, or as much more as it takes for 256 of them; multiples of 2M with virtio-mem
--memory hugepage_size | same |
--memory reserve | differs | shared memory has its pages at once: the kernel keeps no account of those that are promised
--memory-zone id size hugepage_size host_numa_node mergeable | same |
--memory-zone hugepages prefault | differs | unset: as `--memory` says, which is passed over there
--memory-zone shared | differs | unset: as `--memory` says, else on by itself where a vhost-user device needs it
--memory-zone file | differs | locked while it is in use; one that is smaller than the zone is refused
--memory-zone reserve | differs | as `--memory reserve`, and what that says where it is unset
--memory-zone hotplug_size | differs | multiples of 128M, by `vm.resize(memory=, zone=)`, in no file=, as there; size= may be 0
--memory-zone hotplugged_size | differs | multiples of 2M
--numa guest_numa_id | differs | 0 to 63
--numa cpus memory_zones pci_segments | differs | what is in none is in the lowest, a processor of two in the last; not on arm64
--numa distances | differs | 11 to 255, which is all that Linux heeds, which the other node has back unless it says another
--numa device_id | differs | of a device that is there from the start, else refused (a warning there)
--limits exits | ours | exits a second to this process, of all vCPUs together; a guest that would make more stands still
--limits lifetime | ours | seconds from the first start, after which the guest is ended
--limits idle | ours | the same for seconds in which it neither computes nor gets or gives anything
--platform num_pci_segments | same | 1 to 96
--platform iommu_segments | differs | devices there are behind the IOMMU without iommu=on of their own
--platform iommu_address_width | differs | 32 to 64; unset: 48 (64 there)
--platform serial_number uuid | same | `system_serial_number` and `system_uuid` go before
--platform system_manufacturer system_product_name | differs | unset: aiovmm; without any of these keys there are no SMBIOS tables
--platform system_version system_serial_number system_uuid system_sku_number system_family chassis_asset_tag | same |
--platform oem_strings | differs | more than 255 as well; 47 KiB in all
--platform iommufd | same | as `iommufd_fd` says, else off
--platform iommufd_fd | same |
--platform vfio_p2p_dma | differs | on is refused where there are devices of the host; unset: off (on there)
--pci-segment pci_segment | same |
--pci-segment mmio32_aperture_weight mmio64_aperture_weight | differs | 1 to 512, of which there must be room for the sum
--platform tdx sev_snp | refused | confidential guests are not there | off false
--rng | ours | alone, as in old command lines: the default
--rng src id pci_segment pci_device_id iommu | same |
--serial off | same | the terminal then has hvc0
--serial null | differs | unset, ttyS0 is on the terminal if the kernel's command line names no hvc console last
--serial tty | differs | keys (ctrl-p ctrl-q) detach
--serial pty | differs | its path is said on standard error
--serial file | same |
--serial socket | differs | up to 256 clients, with 1 MiB of history each; `aiovmm attach` is one
--serial filter | ours | `tty,filter=on` shows what draws alone: no queries, no clipboard, no windows
--console off | differs | the terminal then has ttyS0, where the reference leaves it null and the guest mute
--console null | differs | likewise
--console tty | differs | keys (ctrl-p ctrl-q) detach; with `--serial tty` both print there and what is typed goes to ttyS0
--console pty | differs | its path is said on standard error
--console file | same |
--console socket | ours | as `--serial socket=`
--console filter | ours | likewise
--console id pci_segment pci_device_id iommu | same |
--debug-console off null file | same |
--debug-console tty pty | differs | as `--serial tty` and `--serial pty`; what is typed goes nowhere
--debug-console socket | ours | as `--serial socket=`
--debug-console filter | ours | as `--serial tty,filter=on`
--debug-console iobase | differs | decimal, too; a port that is another device's is refused
"""
