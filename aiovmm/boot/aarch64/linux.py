"""Everything around the kernel that its boot protocol demands: initramfs, device tree, the boot processor's registers.

Source: Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.aarch64.hardware import Hardware, Seeds
from aiovmm.boot.aarch64.kernel import Entry, KernelImage
from aiovmm.boot.aarch64.tree import device_tree
from aiovmm.boot.fdt import flatten
from aiovmm.boot.initrd import Initrd, initrd_source
from aiovmm.errors import ConfigError, GuestFault, ImageError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass

__all__ = ["CMDLINE_MAX", "CpuState", "fresh_seeds", "setup_linux"]

CMDLINE_MAX = 2047
"""Bytes of a command line: COMMAND_LINE_SIZE of arm64 Linux less the NUL."""
_REACH = 32 * layout.GIB  # kernel and initramfs lie in one window of so much, aligned to 1 GiB
_EL1H_MASKED = 0x3C5  # PSTATE: EL1 with its own stack pointer; debug, SError, IRQ and FIQ masked
_RNG_SEED = 64


@dataclass(frozen=True)
class CpuState:
    """Registers of the boot processor at the first instruction; x1 to x3 are zero, and the MMU is off as after reset."""

    pc: int
    x0: int
    pstate: int = _EL1H_MASKED


def fresh_seeds() -> Seeds:
    """Of this host's randomness; new ones for each power-on."""
    return Seeds(os.urandom(_RNG_SEED), int.from_bytes(os.urandom(8)) or 1)


def setup_linux(
    memory: GuestMemory,
    image: KernelImage,
    cmdline: str,
    initrd: Initrd | None,
    ram: Sequence[tuple[int, int]],
    hardware: Hardware,
    seeds: Seeds | None = None,
) -> CpuState:
    """Prepare `memory`, into which `image` has been loaded, and return the boot processor's state at the first instruction.

    `initrd` is its bytes or a path (read straight into guest memory); `ram` are (gpa, size) as of `layout.ram_ranges`; `hardware`
    has all that is plugged in. Raises ConfigError (command line, a tree that is too large) and ImageError (the initramfs does
    not fit or is not there).
    """
    bootargs = _bootargs(cmdline)
    placed = None if initrd is None else _place_initrd(memory, image.entry, initrd, ram)
    blob = flatten(
        device_tree(hardware, ram, cmdline=bootargs, initrd=placed, seeds=seeds),
        boot_cpu=hardware.affinities[0] & 0xFFFFFFFF,
    )
    if len(blob) > layout.FDT_MAX:
        reason = f"their device tree takes {len(blob)} bytes, and kernels read {layout.FDT_MAX}"
        raise ConfigError("cpus.boot", reason, "give the guest fewer vCPUs or PCI segments")
    try:
        memory.write(layout.FDT, blob)
    except GuestFault as exc:
        raise ImageError(image.path, f"the guest's memory has no room to boot it: {exc}") from exc
    return CpuState(pc=image.entry.address, x0=layout.FDT)


def _bootargs(cmdline: str) -> bytes:
    data = cmdline.encode(errors="surrogateescape")
    if len(data) > CMDLINE_MAX:
        raise ConfigError("cmdline", f"{len(data)} bytes long; an arm64 kernel takes {CMDLINE_MAX}")
    if b"\0" in data:
        raise ConfigError("cmdline", "contains a NUL byte, where the kernel would stop reading")
    return data


def _place_initrd(
    memory: GuestMemory, kernel: Entry, initrd: Initrd, ram: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Copy the initramfs, page-aligned, as high as it can be in the first piece of RAM that has room; (gpa, size)."""
    source, name = initrd_source(initrd)
    places = _initrd_places(kernel, ram)
    for floor, top in places:
        address = (top - source.size) & -layout.PAGE
        if address >= floor:
            source.read_into(memory.pieces(address, source.size))
            return address, source.size
    free = max(0, *(top - floor for floor, top in places))
    reason = f"{source.size} bytes long, but the kernel leaves {free} bytes of the guest's memory for it"
    raise ImageError(name, reason, _initrd_hint(kernel, source.size))


def _initrd_places(kernel: Entry, ram: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(floor, top) of where an initramfs may be: after the kernel, or in the RAM above 4 GiB as far as the kernel maps it."""
    reach = kernel.address // layout.GIB * layout.GIB + _REACH
    return [(max(gpa, kernel.end), min(gpa + size, reach)) for gpa, size in ram if gpa < reach]


def _initrd_hint(kernel: Entry, size: int) -> str:
    """More memory, unless no amount of it would do."""
    most = max(top - floor for floor, top in _initrd_places(kernel, layout.ram_ranges(1 << 40)))
    if size <= most:
        return "give the guest more memory"
    return f"no more than {most} bytes are in this kernel's reach: make it smaller, or put its content on a disk"
