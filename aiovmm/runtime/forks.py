"""What a forked child must not keep of its parent's guests.

A child that goes on as Python (a worker of multiprocessing where "fork" is the method, the default before Python 3.14) has a
copy of every descriptor, O_CLOEXEC or not. With it the TAP would stay busy, the KVM VM and its memory would live on after the
parent has closed them. So in the child these numbers become /dev/null: they stay taken, and whatever of its copies of our objects
closes them later closes that. Mappings are not copied at all (MADV_DONTFORK), locks are given back in words (ofdlock).

A guest cannot go on in a child: its vCPU threads are the parent's.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

__all__ = ["keep_private", "let_go"]

_private: set[int] = set()
_hooked = False

_BY_NAME = ("anon_inode:kvm-", "anon_inode:[vfio-", "/dev/kvm", "/dev/vfio/", "/dev/iommu")
"""Of these a mapping has descriptors that nobody tells us of."""


def keep_private(fd: int) -> int:
    """From now on until `let_go`, `fd` is this process's alone. Gives it back."""
    global _hooked
    if not _hooked:
        os.register_at_fork(after_in_child=_take_away)
        _hooked = True
    _private.add(fd)
    return fd


def let_go(fd: int) -> int:
    """`fd` is about to be closed. Gives it back."""
    _private.discard(fd)
    return fd


def _take_away() -> None:
    """In the child, before anything else runs."""
    if not _private:
        return
    files = {identity for fd in _private if (identity := _file(fd)) is not None}
    spare = next(iter(_private))
    with suppress(OSError):
        os.close(spare)  # there may be no number left, and what follows takes one
    there = {spare, *map(int, os.listdir("/proc/self/fd"))}
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in there - {nothing}:
        if fd in _private or _file(fd) in files or _is_ours_by_name(fd):
            os.dup2(nothing, fd, inheritable=False)
    if nothing not in _private:
        os.close(nothing)
    _private.clear()


def _file(fd: int) -> tuple[int, int] | None:
    """What tells a file with content from all others, for those have one inode in common."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _is_ours_by_name(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(_BY_NAME)
    except OSError:
        return False
