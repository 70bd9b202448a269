"""A translation that cuts each buffer in pieces of a page, without the memory that as many pages would take."""

from __future__ import annotations

from typing import Any

from aiovmm.memory import PAGE_SIZE, GuestMemory
from aiovmm.native import ffi, lib

__all__ = ["IOVA", "OnePageManyTimes"]

IOVA = 1 << 40


class OnePageManyTimes:
    """An AddressSpace: memory as it is, and from IOVA on `count` mappings of a page each, all of the same page."""

    def __init__(self, memory: GuestMemory, page: int, count: int) -> None:
        size = memory.size
        self.memory = memory
        self.page = page
        self.regions = ffi.new("struct avmm_region[]", count + 1)
        self.table: Any = ffi.new("struct avmm_mem *", {"count": count + 1, "regions": self.regions})
        rights = lib.AVMM_MEM_READ | lib.AVMM_MEM_WRITE
        host = memory.host_address(page, PAGE_SIZE)
        self.regions[0] = {"base": 0, "size": size, "host": memory.host_address(0, size), "perm": rights}
        for i in range(count):
            self.regions[i + 1] = {"base": IOVA + i * PAGE_SIZE, "size": PAGE_SIZE, "host": host, "perm": rights}

    def slice(self, address: int, size: int) -> memoryview:
        if address >= IOVA:
            address = self.page + address % PAGE_SIZE
        return self.memory.slice(address, size)

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.memory.write(address, data)
