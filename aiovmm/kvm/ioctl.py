"""ioctls on KVM's file descriptors, checked: a failure is a KvmError that names the operation, the errno and what to do."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from aiovmm.errors import KvmError
from aiovmm.native import ffi, lib, owners

__all__ = ["FDS_PER_GUEST", "Calls", "call", "error", "try_call"]

FDS_PER_GUEST = 16
"""A generous guess of the file descriptors a small guest needs: VM, exits, vCPUs, and two or three a device."""

_REMEDIES = {
    errno.EMFILE: f"raise the limit of open files (`ulimit -n`); a guest needs about {FDS_PER_GUEST} file descriptors",
    errno.ENFILE: "the host is out of file handles; raise fs.file-max",
    errno.ENOMEM: "the host is out of memory, or `ulimit -v` is too low",
    errno.EBUSY: "another hypervisor on this host holds the processor's virtualization extensions; stop it",
    errno.EOPNOTSUPP: "the processor's virtualization extensions are off; enable them in the firmware (on a PC: VT-x, AMD-V)",
    errno.ENOTTY: "this kernel's KVM does not know the operation; a newer kernel is needed",
}


def try_call(fd: int, request: int, argument: Any = 0) -> int:
    """The ioctl's result (>= 0), or a negated errno. `argument` is an integer or a cdata pointer."""
    value = argument if isinstance(argument, int) else owners.address(argument)
    return int(lib.avmm_ioctl(fd, request, value))


def call(fd: int, request: int, argument: Any, operation: str, hints: dict[int, str] | None = None) -> int:
    """The ioctl's result. Raises KvmError with the hint that belongs to the errno; `hints` go before the general ones."""
    result = try_call(fd, request, argument)
    if result < 0:
        raise error(operation, -result, hints)
    return result


class Calls:
    """ioctls that are made together, in order: `(request, argument, least)`, of which a result below `least` is a failure. Made
    once, for any number of descriptors.

    Whoever makes them one by one needs the interpreter between any two, and on a busy one waits for it each time, some
    milliseconds.
    """

    def __init__(self, calls: Sequence[tuple[int, Any, int]]) -> None:
        self._calls = ffi.new("struct avmm_call[]", len(calls))
        for row, (request, argument, least) in zip(self._calls, calls, strict=True):
            row.request, row.argument, row.least = request, owners.address(argument), least
        owners.keep(self._calls, *(argument for _, argument, _ in calls))

    def make(self, fd: int) -> bool:
        """Whether all were made; else those before one that failed, and what it is only who makes them one by one learns."""
        count = len(self._calls)
        return bool(lib.avmm_ioctls(fd, self._calls, count) == count)


def error(operation: str, code: int, hints: dict[int, str] | None = None, path: str | None = None) -> KvmError:
    """The KvmError for errno `code`, with the hint that belongs to it."""
    return KvmError(operation, code, {**_REMEDIES, **(hints or {})}.get(code, ""), path)
