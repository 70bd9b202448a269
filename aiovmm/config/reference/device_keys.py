"""Keys of the options that add devices; see machine_keys."""

from __future__ import annotations

__all__ = ["TABLE"]

TABLE = """
--disk path | differs | qcow2, VHD and VHDX go to QEMU's storage daemon; VMDK and others are refused without image_type=raw
--disk image_type | differs | VHD: dynamic, too; no vmdk; unset, no guest makes a raw image another (there: no write to sector 0)
--disk readonly direct | same | direct: of a file that is not whole blocks long the last bytes are not there
--disk queue_size | differs | a power of two from 2; the reference refuses 2
--disk num_queues | differs | may be more than there are vCPUs
--disk serial | same | 1 to 20 bytes; unset: from the numbers of the file and its device
--disk sparse | differs | off: the guest cannot trim, and zeros stay allocated; what the image does not have yet is not allocated
--disk lock_granularity | differs | unset: `full` (`byte-range` there); qcow2, VHD and VHDX have QEMU's own locks
--disk _disable_io_uring | same | threads do the I/O
--disk _disable_aio | same | Linux AIO is never used
--disk vhost_user | differs | keys of the image, which have no effect there, are refused
--disk socket | differs | memory is shared without being asked for; 60 s for the back end to come, as there
--disk bw_size ops_size | differs | sizes may have a suffix
--disk bw_one_time_burst ops_one_time_burst | differs | refused without its size, where it has no effect there
--disk bw_refill_time ops_refill_time | differs | unset: 1000, a second; there, no limit
--disk rate_limit_group | same |
--disk queue_affinity | differs | where transfers are made, by threads then, not io_uring; the event loop looks into all queues
--disk backing_files | same | off: an image that names a base is refused
--disk overlay | ours | a file that takes what the guest writes, over an image that is only read: see disks.md
--disk id pci_segment pci_device_id iommu | same |
--net tap | differs | unset or empty: one called aiovmm0, aiovmm1, ... is made (vmtap0 there)
--net ip | same | IPv4 or IPv6; goes with mask=
--net mask | differs | also the length of a netmask, like 24 or 64
--net mac | differs | of a multicast address it is remarked that Linux brings no such interface up
--net host_mac | same |
--net offload_tso offload_ufo | same |
--net offload_csum | differs | off also switches segmentation off, which is nothing without; the reference wants all three
--net queue_size | same |
--net mtu | differs | 68 to 65521, what a TAP takes (65535 with other back ends)
--net num_queues | differs | counts both directions; may be more than twice the vCPUs; an odd one is rounded down to pairs
--net vhost_user | differs | keys of the host's side of a card, which have no effect there, are refused
--net socket | differs | memory is shared without being asked for; 60 s for the back end to come, as there
--net fd | differs | also one connected socket
--net vhost_mode | differs | server without vhost_user=on is refused; a back end that goes away may come again
--net bw_size ops_size | differs | over all queue pairs; sizes may have a suffix
--net bw_one_time_burst ops_one_time_burst | differs | refused without its size, where it has no effect there
--net bw_refill_time ops_refill_time | differs | unset: 1000, a second; there, no limit
--balloon size deflate_on_oom free_page_reporting id pci_segment pci_device_id | same |
--balloon iommu | differs | the guest finds it behind the IOMMU; addresses are physical, as Linux means them there too
--watchdog action | ours | `reset`, or `event`: nothing but the event, which there is in either case; `--watchdog` alone resets
--watchdog id pci_segment pci_device_id iommu | ours | where it sits; the reference takes `--watchdog` alone
--pvpanic id pci_segment pci_device_id | ours | where it sits; the reference takes `--pvpanic` alone
--pvpanic iommu | ours | refused: it reaches no memory
--rtc id pci_segment pci_device_id iommu | same |
--generic-vhost-user device_type | differs | a number from 1 to 63, or a name of the reference's
--generic-vhost-user virtio_id queue_sizes id pci_segment pci_device_id | same |
--generic-vhost-user socket | differs | memory is shared without being asked for; 60 s for the back end to come, as there
--generic-vhost-user iommu | ours | refused: a back end reaches memory by itself
--rate-limit-group id bw_size bw_one_time_burst ops_size ops_one_time_burst | same |
--rate-limit-group bw_refill_time ops_refill_time | differs | unset: 1000, a second; there, no limit
--net passt | ours | a network without privileges
--net anti_spoof guest_ip | ours | a guest sends from its own addresses alone
--net id pci_segment pci_device_id iommu | same |
--fs tag queue_size | same |
--fs socket | differs | memory is shared without being asked for; 60 s for the back end to come, as there
--fs num_queues | differs | may be more than there are vCPUs, and 255 at most
--fs id pci_segment pci_device_id | same |
--fs iommu | ours | refused: a vhost-user back end reaches memory by itself
--pmem file | differs | locked while it is in use
--pmem size | differs | no more than the file has; for a directory, that of an unnamed file in it
--pmem discard_writes | same |
--pmem id pci_segment pci_device_id iommu | same |
--device path | differs | no I/O BARs, expansion ROM or extended configuration space
--device fd | differs | goes with iommufd=on, and need not with `iommufd_fd`; not by `aiovmm add`
--device x_nv_gpudirect_clique | refused | devices are shown to the guest as they are
--device x_exclude_mmap_bars | same |
--device id pci_segment pci_device_id iommu | same |
--vsock cid | same |
--vsock socket | differs | may be left out; at most 90 bytes, since a port comes after it
--vsock id pci_segment pci_device_id iommu | same |
"""
