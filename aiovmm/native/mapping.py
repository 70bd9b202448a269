"""Memory that is mapped from a file or from none, with its address here for native code and the kernel."""

from __future__ import annotations

import mmap
from typing import Any

from aiovmm.native import ffi, owners

__all__ = ["Mapping"]


class Mapping(mmap.mmap):
    """An mmap.mmap that knows its `host` address, which is good for as long as this object or a view of it is there."""

    host: int

    def __init__(self, *_args: Any, **_options: Any) -> None:
        """The arguments of mmap.mmap. Raises OSError. No child process gets it, nor the guest's memory with it; of one that is
        private each write here would first copy a page for the child."""
        self.madvise(mmap.MADV_DONTFORK)
        holder = ffi.from_buffer(self)
        self.host = owners.address(holder)
        ffi.release(holder)

    def close(self) -> None:
        """Unmap it; if somebody holds a view, the last of these does."""
        try:
            super().close()
        except BufferError:
            return
