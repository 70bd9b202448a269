"""QEMU's `virt` machine, emulated, with memory that our loader has prepared: a real kernel reads our tree.

Its addresses are not ours, so the tree says QEMU's; everything else that a kernel is given is made as for a guest of ours. The
one thing that QEMU cannot be told is a register, so five instructions load x0 and go to where the boot processor would begin.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from aiovmm.boot.aarch64 import CpuTopology, Gic, Hardware, PrimeCell, fresh_seeds, layout, load_kernel, setup_linux
from aiovmm.boot.pci import IntxWire, PciSegment, VirtioIommu, Window
from aiovmm.memory import GuestMemory
from tests.boot.aarch64.machines import mpidr

PROGRAM = "qemu-system-aarch64"
_TRAMPOLINE = layout.FDT + (
    1 << 20
)  # QEMU puts a tree of its own where ours is, so ours goes to the other half of its 2 MiB
_TREE = _TRAMPOLINE + 4096
_LDR_X0, _LDR_X4, _BR_X4, _NOP = 0x58000080, 0x580000A4, 0xD61F0080, 0xD503201F
_HANGS = 600.0  # seconds


def hardware(vcpus: int, topology: CpuTopology | None = None, iommu: VirtioIommu | None = None) -> Hardware:
    """hw/arm/virt.c: the memory map of a machine without high memory, and its interrupts."""
    return Hardware(
        tuple(map(mpidr, range(vcpus))),
        Gic(vcpus, distributor=0x08000000, redistributors=0x080A0000, its=0x08080000),
        (PciSegment(0, 0x3F000000, Window(0x10000000, 0x2EFF0000), end_bus=15, intx=(IntxWire(1, 4), IntxWire(2, 5))),),
        topology,
        pmu=True,
        uart=PrimeCell(0x09000000, 1, 0x00141011),
        rtc=PrimeCell(0x09010000, 2, 0x00041031),
        gpio=PrimeCell(0x09030000, 7, 0x00041061),
        iommu=iommu,
    )


def boot(
    directory: Path,
    kernel: Path,
    machine: Hardware,
    *,
    cmdline: str,
    initrd: bytes,
    size: int = 512 << 20,
    devices: Sequence[str] = (),
) -> str:
    """What the guest says on its serial port until it powers itself off."""
    command = _command(directory, kernel, machine, cmdline, initrd, size, devices)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_HANGS)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, done.stderr.decode(errors="replace") + output[-3000:]
    return output


def press_power_button(
    directory: Path,
    kernel: Path,
    machine: Hardware,
    *,
    cmdline: str,
    initrd: bytes,
    after: bytes,
    size: int = 512 << 20,
) -> bytes:
    """The same of one that is told to power off once it has said `after`."""
    command = _command(directory, kernel, machine, cmdline, initrd, size, ())
    monitor = directory / "qmp"
    command += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    said = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 65536):
                before, said = said, said + data
                if after in said and after not in before:
                    with socket.socket(socket.AF_UNIX) as stream:
                        stream.connect(str(monitor))
                        stream.sendall(b'{"execute": "qmp_capabilities"}{"execute": "system_powerdown"}')
                        answers = b""
                        while answers.count(b'"return"') < 2:
                            answers += stream.recv(4096)
            assert process.wait(_HANGS) == 0
        finally:
            process.kill()
    return said


def _command(
    directory: Path, kernel: Path, machine: Hardware, cmdline: str, initrd: bytes, size: int, devices: Sequence[str]
) -> list[str]:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM} (package qemu-system-arm)")
    path = directory / "ram"
    _prepare(path, kernel, machine, cmdline, initrd, size)
    command = [PROGRAM, "-M", "virt,gic-version=3,its=on,highmem=off,memory-backend=ram", "-cpu", "max"]
    command += ["-object", f"memory-backend-file,id=ram,size={size},mem-path={path},share=on"]
    command += ["-smp", str(len(machine.mpidrs)), "-m", str(size >> 20)]
    command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += [word for device in devices for word in ("-device", device)]
    command += ["-device", f"loader,addr={_TRAMPOLINE:#x},cpu-num=0"]
    return command


def _prepare(path: Path, kernel: Path, machine: Hardware, cmdline: str, initrd: bytes, size: int) -> None:
    ram = [(layout.RAM, size)]
    memory = GuestMemory()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(fd, size)
        memory.map_fd(layout.RAM, size, fd)
        image = load_kernel(kernel, cache=path.parent / "kernels")
        image.load_into(memory)
        state = setup_linux(memory, image, cmdline, initrd, ram, machine, fresh_seeds())
        memory.write(_TREE, memory.read(state.x0, 64 << 10))
        memory.write(_TRAMPOLINE, struct.pack("<4I2Q", _LDR_X0, _LDR_X4, _BR_X4, _NOP, _TREE, state.pc))
    finally:
        memory.close()
        os.close(fd)
