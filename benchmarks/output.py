"""What a guest prints on its serial port and on hvc0, until it is at the other end of a unix socket. Boots stock kernels.

64 KiB on ttyS0, where each byte is an exit, and 1 MiB on hvc0, which is virtio-console; both raw. Against QEMU.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.guest import AIOVMM, QEMU, Files, Guest, both, compare, connect
from benchmarks.harness import Options, Result, Target

NESTED = True


def run(options: Options) -> Iterator[Result]:
    """Both rows, in KiB a second."""
    with tempfile.TemporaryDirectory() as name:
        files = Files(Path(name), options.release)
        places = {QEMU: Path(name, "qemu-hvc0"), AIOVMM: Path(name, "aiovmm-hvc0")}
        qemus = ["-chardev", f"socket,id=c,path={places[QEMU]},server=on,wait=off", "-device", "virtio-serial-pci"]
        qemu, aiovmm = both(
            files, ["--console", f"socket={places[AIOVMM]}"], [*qemus, "-device", "virtconsole,chardev=c"]
        )
        with qemu, aiovmm, connect(places[QEMU]) as theirs, connect(places[AIOVMM]) as ours:
            outputs = {QEMU: theirs, AIOVMM: ours}
            rows = (("ttyS0", 64 << 10, 8 << 10, None), ("hvc0", 1 << 20, 1 << 20, outputs))
            for device, usual, quick, places_ in rows:
                size = options.pick(usual, quick)
                row = Result(f"{device} output, {size >> 10} KiB", "KiB/s", AIOVMM, (QEMU,), Target(1.5, most=False))
                if options.wants(row.name):
                    yield compare(row, (qemu, aiovmm), printing(f"/dev/{device}", size, places_), options)


def printing(device: str, size: int, outputs: Mapping[str, socket.socket] | None) -> Callable[[Guest], float]:
    """KiB a second of dots on a device of the guest, which come out of `outputs` by its name, or of its serial port."""
    return lambda guest: size / 1024 / guest.print_dots(device, size, outputs[guest.name] if outputs else None)
