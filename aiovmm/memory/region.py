"""What guest memory is made of, and how it looks to rings and devices."""

from __future__ import annotations

from typing import Any, Protocol

from aiovmm.native.mapping import GuestMapping
from aiovmm.runtime.dataclass import dataclass

PAGE_SIZE = 4096


class AddressSpace(Protocol):
    """How rings and devices reach guest memory. Addresses are the guest's own (GPA), or IOVAs behind an IOMMU."""

    @property
    def table(self) -> Any:
        """`struct avmm_mem *` for native code. Valid as long as the address space; its content may change in place."""

    def slice(self, address: int, size: int) -> memoryview:
        """Writable view of [address, address + size). Raises GuestFault if any byte of it is not memory."""

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes. Raises GuestFault."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data`. Raises GuestFault before any byte is written."""


@dataclass(frozen=True, eq=False)
class MemoryRegion:
    """`size` bytes of guest-physical space at `gpa`, mapped here at `host`; backed by `fd` at `offset`, or by none (-1)."""

    gpa: int
    size: int
    fd: int
    offset: int
    mapping: GuestMapping
    host: int
    readonly: bool = False
    shared: bool = True  # stores are seen through the fd, so that other processes can be given it
    ram: bool = False  # else it is a device's (a pmem image), whose file is nobody's business but ours

    @property
    def end(self) -> int:
        """The first guest-physical address after the region."""
        return self.gpa + self.size


@dataclass(frozen=True)
class Backing:
    """What RAM is made of: private pages, `shared` ones that other processes can be given, or those of `fd`, a file that
    becomes the memory's. `hugepages` come from the host's reserve, of `hugepage_size` bytes or its default; `thp` are
    those that the kernel makes for private memory as it can. `prefault`: they are there at once; `reserve`: they are
    promised at once. `mergeable`: private pages that the kernel may hold once for several guests. `host_node`: whose
    memory it is, on a host with several."""

    shared: bool = True
    hugepages: bool = False
    hugepage_size: int | None = None
    prefault: bool = False
    reserve: bool = False
    thp: bool = True
    mergeable: bool = False
    fd: int = -1
    host_node: int | None = None


@dataclass(frozen=True, eq=False)
class Origin:
    """The snapshot, by its identity, whose pages a restored guest's memory shows where nobody has written. `moved` is a bitmap of
    pages that were put in otherwise: in the file they are not as they are in the snapshot."""

    snapshot: str
    moved: bytes
