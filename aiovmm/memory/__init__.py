"""Guest memory: private, or a memfd mapped shared that other processes can be given.

Private memory is anonymous, which is what the kernel gives huge pages for of itself: loading a kernel then costs a page
fault for 2 MiB instead of 4 KiB, and so does what the guest touches, twice (the processor's nested page tables have large
entries where guest-physical and host addresses agree modulo 2 MiB). Shared memory has them only if the host's administrator
has allowed it (/sys/kernel/mm/transparent_hugepage/shmem_enabled).

`slice` hands out bounds-checked, writable views; a view keeps its mapping alive, so memory is never unmapped under
somebody's feet. Native code walks the same regions through `table` (see native/src/mem.h). Anything that rings and devices
use to reach memory has the shape of `AddressSpace`: guest memory itself, or a translation in front of it (an IOMMU).
"""

from __future__ import annotations

from aiovmm.memory.guest import GuestMemory
from aiovmm.memory.region import PAGE_SIZE, AddressSpace, Backing, MemoryRegion, Origin

__all__ = ["PAGE_SIZE", "AddressSpace", "Backing", "GuestMemory", "MemoryRegion", "Origin"]
