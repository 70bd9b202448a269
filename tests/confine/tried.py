"""What programs that have given something up begin with."""

from __future__ import annotations

TRIED = """
import os

def tried(what, call):
    try:
        call()
    except OSError as exc:
        print(what + ":", os.strerror(exc.errno))
    else:
        print(what + ": done")
"""

FOREIGN_RINGS = """
def foreign_rings():
    import os, sys
    ours = set()
    if (rings := sys.modules.get("aiovmm.devices.virtio.blk.rings")) is not None:
        ours = {ring.fd for each in rings._rings.values() for ring in each} | {ring.uring.fd for ring in rings._kept or ()}
    links = {int(fd): f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    there = {fd for fd, link in links.items() if os.path.islink(link) and "io_uring" in os.readlink(link)}
    assert ours <= there, "of disks"
    return sorted(there - ours)
"""
"""Descriptors of io_urings that are not disks', which do what disks need alone."""
