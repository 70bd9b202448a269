"""One PCI device of the host, opened through VFIO: its regions, its interrupts, its reset. It outlives the guest's reboots."""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from pathlib import Path

from aiovmm.errors import ConfigError, HostError, StateError
from aiovmm.native.mapping import Mapping
from aiovmm.vfio import abi
from aiovmm.vfio.abi import Irq, IrqInfo, Region, RegionInfo, Request
from aiovmm.vfio.space import AddressSpace, Opened, VfioFile, call
from aiovmm.vfio.sysfs import HostFunction, find, find_file
from aiovmm.vfio.system import System

__all__ = ["HostDevice", "MappedArea"]

CONFIG_SIZE = 256


class MappedArea:
    """`size` bytes at `offset` of a BAR, mapped here."""

    def __init__(self, bar: int, offset: int, mapping: Mapping) -> None:
        self.bar = bar
        self.offset = offset
        self.size = len(mapping)
        self.mapping = mapping

    def close(self) -> None:
        """Unmap."""
        self.mapping.close()


class HostDevice:
    """The device whose sysfs directory is `place`, or of whose own file that is a descriptor. `open` acquires it, for it to be in
    `space`; errors then name the operation and the device."""

    def __init__(
        self,
        place: Path | int,
        space: AddressSpace,
        system: System,
        label: str = "",
        trapped_bars: Collection[int] = (),
    ) -> None:
        self.trapped_bars = frozenset(trapped_bars)  # of which no page is to be mapped
        self.name = place.name if isinstance(place, Path) else f"descriptor {place}"
        self.label = label or self.name  # whose it is, for names of threads
        self.regions: tuple[RegionInfo, ...] = ()
        self.irqs: dict[Irq, IrqInfo] = {}
        self.can_reset = False
        self.function: HostFunction | None = None
        self._place = place
        self._space = space
        self._system = system
        self._opened: Opened | None = None
        self._areas: list[MappedArea] = []

    @property
    def is_open(self) -> bool:
        """Whether it is ours."""
        return self._opened is not None

    @property
    def known(self) -> VfioFile:
        """The file by which KVM is told of it, while it is ours."""
        assert self._opened is not None, "it is open"
        return self._opened.known

    def find(self) -> HostFunction:
        """What sysfs says of it. Raises HostError with a remedy if it cannot be handed over, ConfigError."""
        if isinstance(self._place, Path):
            return find(self._place, self._system.sysfs)
        try:
            number = self._system.device_number(self._place)
        except OSError as exc:
            raise ConfigError("device.fd", f"{self._place} is not open: {exc.strerror}") from exc
        return find_file(self._place, number, self._system.sysfs)

    def open(self) -> None:
        """Find the device, take it, ask what it has. Raises HostError with a remedy, ConfigError; nothing is held then."""
        if self._opened is not None:
            return
        self.function = function = self.find()
        self.name = function.address
        self._opened = self._space.open_device(function)
        try:
            self._examine()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it back to the host; the kernel resets it. Idempotent."""
        while self._areas:
            self._areas.pop().close()
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._space.close_device(opened)

    def _examine(self) -> None:
        reply = abi.device_info()
        self._call(Request.DEVICE_GET_INFO, reply, "examining")
        info = abi.parse_device_info(reply)
        if not info.is_pci:
            raise HostError(f"{self.name} is not a PCI device", errno.ENODEV)
        self.can_reset = info.can_reset
        self.regions = tuple(self._region_info(index) for index in range(min(info.regions, Region.CONFIG + 1)))
        self.irqs = {kind: self._irq_info(kind) for kind in Irq if kind < info.irqs}

    def _region_info(self, index: int) -> RegionInfo:
        reply = abi.region_info(index)
        try:
            self._call(Request.DEVICE_GET_REGION_INFO, reply, f"examining region {index} of")
            if (room := abi.room_wanted(reply)) > len(reply):
                reply = abi.region_info(index, min(room, 64 << 10))
                self._call(Request.DEVICE_GET_REGION_INFO, reply, f"examining region {index} of")
        except HostError as exc:
            if exc.errno == errno.EINVAL:  # a region that this device does not have
                return RegionInfo(index, 0, 0)
            raise
        return abi.parse_region_info(reply)

    def _irq_info(self, kind: Irq) -> IrqInfo:
        reply = abi.irq_info(kind)
        try:
            self._call(Request.DEVICE_GET_IRQ_INFO, reply, f"examining {kind.name} of")
        except HostError as exc:
            if exc.errno == errno.EINVAL:
                return IrqInfo(kind, 0, fixed=True)
            raise
        return abi.parse_irq_info(reply)

    # -- registers

    def read(self, region: int, offset: int, size: int) -> bytes:
        """`size` bytes of a region; ones where the device does not answer."""
        info = self.regions[region]
        try:
            data = self._system.pread(self._fd, size, info.offset + offset)
        except OSError:  # as a read that nobody answers on the bus
            data = b""
        return data.ljust(size, b"\xff")

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Store into a region; lost where the device does not take it."""
        try:
            self._system.pwrite(self._fd, data, self.regions[region].offset + offset)
        except OSError:  # a posted write to nobody
            return

    def config(self) -> bytes:
        """The first 256 bytes of its configuration space. Raises HostError."""
        try:
            data = self._system.pread(self._fd, CONFIG_SIZE, self.regions[Region.CONFIG].offset)
        except OSError as exc:
            raise HostError(f"reading the configuration of {self.name}", exc.errno or 0) from exc
        return data.ljust(CONFIG_SIZE, b"\0")

    def map(self, bar: int, offset: int, size: int) -> MappedArea:
        """A part of a BAR in this process, until the device is closed. Raises HostError."""
        for area in self._areas:
            if (area.bar, area.offset, area.size) == (bar, offset, size):
                return area
        try:
            mapping = self._system.mmap(self._fd, size, self.regions[bar].offset + offset)
        except OSError as exc:
            raise HostError(f"mapping BAR {bar} of {self.name}", exc.errno or 0) from exc
        area = MappedArea(bar, offset, mapping)
        self._areas.append(area)
        return area

    # -- interrupts, reset

    def set_irqs(self, kind: Irq, start: int, fds: Sequence[int]) -> None:
        """Interrupts `start` on signal these eventfds (-1: none). Raises HostError."""
        argument = abi.irq_eventfds(kind, start, fds)
        hints = {errno.ENOSPC: "the host has no more interrupt vectors"}
        granted = self._call(Request.DEVICE_SET_IRQS, argument, f"setting up {len(fds)} {kind.name} vectors of", hints)
        if granted > 0:  # the kernel says how many it could have given
            raise HostError(
                f"setting up {len(fds)} {kind.name} vectors of {self.name}",
                errno.ENOSPC,
                f"the host has {granted} vectors for it",
            )

    def irqs_off(self, kind: Irq) -> None:
        """No interrupt of this kind any more. Raises HostError."""
        self._call(Request.DEVICE_SET_IRQS, abi.irq_off(kind), f"turning off {kind.name} of")

    def unmask_irq(self, kind: Irq) -> None:
        """Let the interrupt of this kind, which the kernel masks when it signals it, come again. Raises HostError."""
        self._call(Request.DEVICE_SET_IRQS, abi.irq_unmask(kind), f"unmasking {kind.name} of")

    def unmask_irq_by(self, kind: Irq, fd: int) -> None:
        """The same whenever eventfd `fd` is signalled, until it is off. Raises HostError."""
        self._call(
            Request.DEVICE_SET_IRQS, abi.irq_unmask_by(kind, fd), f"having {kind.name} unmasked by the kernel of"
        )

    def reset(self) -> None:
        """Put the device into the state it has after power-on; blocks for 100 ms and more. Raises HostError."""
        if self.can_reset:
            self._call(Request.DEVICE_RESET, 0, "resetting")

    def _call(
        self,
        request: Request,
        argument: int | bytearray,
        operation: str,
        hints: dict[int, str] | None = None,
    ) -> int:
        return call(self._system, self._fd, request, argument, f"{operation} {self.name}", hints)

    @property
    def _fd(self) -> int:
        if self._opened is None:
            raise StateError(f"{self.name} is not open")
        return self._opened.fd
