"""The record of requests in flight: how large it is, and its mapping (vhost-user, "Inflight I/O tracking", split virtqueue)."""

from __future__ import annotations

import os
from typing import Any

from aiovmm.errors import HostError, PeerError
from aiovmm.native import owners
from aiovmm.native.mapping import GuestMapping
from aiovmm.native.seals import seal_size
from aiovmm.vhost_user.payloads import InflightArea

__all__ = ["InflightRecord", "record_size"]

_HEAD = 16  # features, version, desc_num, last_batch_head, used_idx
_ENTRY = 16  # inflight, padding, next, counter
_ALIGN = 64


def record_size(queue_size: int) -> int:
    """Bytes of one queue's record."""
    return -(-(_HEAD + _ENTRY * queue_size) // _ALIGN) * _ALIGN


class InflightRecord:
    """Records of `queues` rings of up to `queue_size` entries, mapped. Without an fd it is private, and dies with the process."""

    def __init__(self, queues: int, queue_size: int, fd: int = -1, offset: int = 0) -> None:
        self.queues = queues
        self.queue_size = queue_size
        try:
            self._mapping = GuestMapping(fd, offset + queues * record_size(queue_size))
        except (OSError, ValueError) as exc:
            raise HostError("mapping a record of requests in flight", getattr(exc, "errno", None) or 22) from exc
        self._offset = offset

    @classmethod
    def create(cls, queues: int, queue_size: int) -> tuple[InflightArea, int]:
        """A new one for others to map: its description and its fd, the caller's. Raises HostError."""
        size = queues * record_size(queue_size)
        try:
            fd = os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            seal_size(fd)
        except OSError as exc:
            raise HostError("making a record of requests in flight", exc.errno or 0) from exc
        return InflightArea(size, 0, queues, queue_size), fd

    @classmethod
    def map(cls, area: InflightArea, fd: int) -> InflightRecord:
        """Map what a peer gives; the fd stays the caller's. Raises PeerError if it is not what it says."""
        needed = area.queues * record_size(area.queue_size)
        if area.size < needed or area.offset % _ALIGN or os.fstat(fd).st_size < area.offset + needed:
            raise PeerError(f"an in-flight record of {area.size} bytes, {needed} are needed")
        try:
            return cls(area.queues, area.queue_size, fd, area.offset)
        except HostError as exc:
            raise PeerError(f"the in-flight record cannot be mapped: {exc}") from exc

    def native(self, index: int, size: int) -> Any:
        """`struct avmm_inflight *` of ring `index`, which keeps the mapping. Raises PeerError if there is none with room for
        `size` entries."""
        if index >= self.queues or size > self.queue_size:
            raise PeerError(f"ring {index} with {size} entries is not in the in-flight record")
        start = self._offset + index * record_size(self.queue_size)
        return owners.view(self._mapping, "struct avmm_inflight *", start)

    def close(self) -> None:
        """Unmap it; while a queue has one of its records, that keeps it."""
        self._mapping.close()
