"""Everything around the kernel that its boot protocol demands: command line, initrd, memory map, start-of-day structure."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.initrd import Initrd, initrd_source
from aiovmm.boot.x86_64 import layout, pvh
from aiovmm.boot.x86_64.cpu import CpuState, linux64_state, pvh_state
from aiovmm.boot.x86_64.e820 import DEFAULT_RESERVED, E820Entry, memory_map
from aiovmm.boot.x86_64.kernel import BootProtocol, KernelImage
from aiovmm.boot.x86_64.params import SetupHeader, zero_page
from aiovmm.errors import ConfigError, GuestFault, ImageError
from aiovmm.memory import GuestMemory

__all__ = ["setup_linux"]

_PVH_CMDLINE_MAX = 2047  # COMMAND_LINE_SIZE of x86 Linux less the NUL; a PVH image does not say its own


def setup_linux(
    memory: GuestMemory,
    image: KernelImage,
    cmdline: str,
    initrd: Initrd | None,
    ram: Sequence[tuple[int, int]],
    rsdp: int = layout.RSDP,
    *,
    reserved: Sequence[tuple[int, int]] = DEFAULT_RESERVED,
) -> CpuState:
    """Prepare `memory`, into which `image` has been loaded, and return the boot processor's state at the first instruction.

    `initrd` is its bytes or a path (read straight into guest memory); `ram` are (gpa, size) as of `layout.ram_ranges`;
    `rsdp` is the RSDP's address (0: no ACPI); `reserved` are ranges that the memory map names as not RAM.
    Raises ConfigError (command line) and ImageError (kernel or initrd does not fit or is not there).
    """
    header = image.header or SetupHeader.synthetic()
    try:
        _write_cmdline(memory, cmdline, header.cmdline_max if image.header else _PVH_CMDLINE_MAX)
        placed = None if initrd is None else _place_initrd(memory, image, header, initrd, ram)
        e820 = memory_map(ram, reserved)
        if image.entry.protocol is BootProtocol.PVH:
            return _enter_pvh(memory, image, placed, e820, rsdp)
        page = zero_page(header, cmdline=layout.CMDLINE, initrd=placed, e820=e820, rsdp=rsdp)
        memory.write(layout.ZERO_PAGE, page)
        return linux64_state(memory, image.entry.address)
    except GuestFault as exc:
        raise ImageError(image.path, f"the guest's memory has no room to boot it: {exc}") from exc


def _write_cmdline(memory: GuestMemory, cmdline: str, longest: int) -> None:
    data = cmdline.encode(errors="surrogateescape")
    limit = min(longest, layout.CMDLINE_MAX - 1)
    if len(data) > limit:
        raise ConfigError("cmdline", f"{len(data)} bytes long; this kernel takes {limit}")
    if b"\0" in data:
        raise ConfigError("cmdline", "contains a NUL byte, where the kernel would stop reading")
    memory.write(layout.CMDLINE, data + b"\0")


def _place_initrd(
    memory: GuestMemory, image: KernelImage, header: SetupHeader, initrd: Initrd, ram: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Copy the initrd, page-aligned, as high as it can be in the first place that has room; (gpa, size)."""
    source, name = initrd_source(initrd)
    places = _initrd_places(image, header, ram)
    for floor, top in places:
        address = (top - source.size) & -layout.PAGE
        if address >= floor:
            source.read_into(memory.pieces(address, source.size))
            return address, source.size
    free = max(0, *(top - floor for floor, top in places))
    reason = f"{source.size} bytes long, but the kernel leaves {free} bytes of the guest's memory for it"
    raise ImageError(name, reason, _initrd_hint(image, header, source.size))


def _initrd_places(image: KernelImage, header: SetupHeader, ram: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(floor, top) of where an initrd may be: where every kernel of this protocol finds it, then where newer ones do."""
    end = image.entry.end
    low = max((gpa + size for gpa, size in ram if gpa < layout.MMIO32), default=0)
    places = [(end, min(low, layout.MMIO32, header.initrd_max + 1))]
    if header.above_4g or image.entry.protocol is BootProtocol.PVH:  # initrd_max speaks of entries that these are not
        places.append((end, min(low, layout.MMIO32)))
    if header.above_4g and image.entry.protocol is BootProtocol.LINUX64:  # Linux keeps 32 bits of what PVH tells it
        places += [(max(gpa, end), gpa + size) for gpa, size in ram if gpa >= layout.RAM_ABOVE_4G]
    return places


def _initrd_hint(image: KernelImage, header: SetupHeader, size: int) -> str:
    """More memory, unless no amount of it would do."""
    (floor, top), *more = _initrd_places(image, header, [(0, layout.MMIO32), (layout.RAM_ABOVE_4G, 1 << 52)])
    most = max([top - floor, *(top - floor for floor, top in more)])
    if size <= most:
        return "give the guest more memory"
    return f"no more than {most} bytes are in this kernel's reach: make it smaller, or put its content on a disk"


def _enter_pvh(
    memory: GuestMemory, image: KernelImage, initrd: tuple[int, int] | None, e820: Sequence[E820Entry], rsdp: int
) -> CpuState:
    if initrd is not None:
        memory.write(layout.PVH_MODULES, pvh.module_list(initrd))
    memory.write(layout.PVH_MEMMAP, pvh.memmap_table(e820))
    info = pvh.start_info(
        modules=(initrd is not None, layout.PVH_MODULES),
        cmdline=layout.CMDLINE,
        rsdp=rsdp,
        memmap=(len(e820), layout.PVH_MEMMAP),
    )
    memory.write(layout.PVH_START_INFO, info)
    return pvh_state(memory, image.entry.address)
