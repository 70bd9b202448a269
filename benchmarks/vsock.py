"""Streams and round trips over vsock, against QEMU's vhost-vsock, which is in the host's kernel. Boots stock kernels.

Programs of the host are at a unix socket for our guest, and at a port of AF_VSOCK for QEMU's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.guest import AIOVMM, QEMU, Files, Guest, both, compare
from benchmarks.harness import Options, Result, Target
from benchmarks.network import serving
from benchmarks.programs import program

NESTED = True
PORT, CID = 5000, 77


def run(options: Options) -> Iterator[Result]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name), options.release)
        path = Path(name, "vsock")
        devices = ["--vsock", f"cid={CID},socket={path}"], ["-device", f"vhost-vsock-pci,guest-cid={CID + 1}"]
        qemu, aiovmm = both(files, *devices)
        with qemu, aiovmm, serving(program("traffic"), f"unix:{path}_{PORT}", f"vsock:-1:{PORT}"):
            yield from rows((qemu, aiovmm), options)


def rows(guests: tuple[Guest, ...], options: Options) -> Iterator[Result]:
    """One row after the other, all guests in turn."""
    seconds, pings = options.pick(3, 1), options.pick(500, 50)
    at_least, twice = Target(0.5, most=False), Target(2.0)
    measures = {
        "vsock, guest to host": ("MiB/s", at_least, f"traffic send vsock:2:{PORT} {seconds}"),
        "vsock, host to guest": ("MiB/s", at_least, f"traffic receive vsock:2:{PORT} {seconds}"),
        "vsock round trip": ("us", twice, f"traffic ping vsock:2:{PORT} {pings}"),
    }
    for name, (unit, target, command) in measures.items():
        if options.wants(name):
            row = Result(name, unit, AIOVMM, (QEMU,), target)
            yield compare(row, guests, lambda guest, c=command: guest.result(c), options)  # type: ignore[misc]
