"""What a guest prints on its serial port and on hvc0, until it is at the other end of a unix socket. Boots stock kernels.

64 KiB on ttyS0, where each byte is an exit, and 1 MiB on hvc0, which is virtio-console; both raw. Against QEMU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.guest import AIOVMM, QEMU, Files, both, connect
from benchmarks.harness import Options, Result, Target, run_rounds

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
                    contestants = {
                        g.name: lambda g=g, d=device, n=size, o=places_: (
                            n / 1024 / g.print_dots(f"/dev/{d}", n, o and o[g.name])
                        )
                        for g in (qemu, aiovmm)
                    }
                    yield run_rounds(row, contestants, options.rounds)
