"""A model of the host's VFIO: a sysfs, containers, groups and devices behind the ioctls. It refuses what Linux refuses."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aiovmm.errors import KvmError
from aiovmm.native.mapping import Mapping
from tests.vfio.iommufd import MAJOR, DeviceFile, IommufdModel, IommuFile

REGION_SHIFT = 40  # as vfio-pci numbers offsets
CONFIG = 7
INTX, MSI, MSIX, ERR = 0, 1, 2, 3
INTX_DISABLE = 0x0400
TABLE, PENDING = 0x2000, 0x3000


def config_space(*, msix: int = 8, msi: bool = True, express: bool = True) -> bytes:
    """An NVMe-like endpoint: BAR 0 is 64-bit memory, BAR 2 32-bit, BAR 3 I/O; power, MSI, MSI-X and PCI Express capabilities."""
    space = bytearray(256)
    struct.pack_into("<HHHHBBBB", space, 0, 0x8086, 0x5845, 0x0507, 0x0010, 2, 2, 8, 1)
    space[0x0E] = 0x80  # multifunction
    struct.pack_into("<II", space, 0x10, 0xFEB0_0004, 0)
    struct.pack_into("<II", space, 0x18, 0xFEA0_0000, 0xC001)
    struct.pack_into("<HH", space, 0x2C, 0x1AF4, 0x1100)
    space[0x3D] = 1  # INTA
    capabilities = [(0x01, 0x40, struct.pack("<HH", 0xFE03, 0x0103) + bytes(2))]
    if msi:
        capabilities.append((0x05, 0x50, struct.pack("<H", 0x0186) + bytes(20)))  # 8 vectors, 64 bits, masks
    if msix:
        capabilities.append((0x11, 0x70, struct.pack("<HII", msix - 1, TABLE, PENDING)))
    if express:
        capabilities.append((0x10, 0x80, struct.pack("<H", 0x0002) + bytes(range(0x38))))
    capabilities.append((0x0D, 0xC0, bytes(6)))  # of a bridge: unknown to us
    capabilities.append((0x09, 0xD0, b"\x08hello"))
    link = 0x34
    for kind, offset, body in capabilities:
        space[link] = offset
        space[offset] = kind
        space[offset + 2 : offset + 2 + len(body)] = body
        link = offset + 1
    return bytes(space)


@dataclass
class FakeDevice:
    """One PCI device; `memory` is its file, a region each REGION_SHIFT bits."""

    address: str
    group: int
    config: bytes
    sizes: tuple[int, ...] = (0x4000, 0, 0x100, 0x20, 0, 0)
    sparse: tuple[tuple[int, int], ...] | None = None
    vectors: int = 64  # that the host has for it
    memory: int = -1
    irqs: dict[int, dict[int, int]] = field(default_factory=dict)
    allocated: dict[int, int] = field(default_factory=dict)
    resets: int = 0
    opened: int = 0
    fail_reset: bool = False
    fail_unmask: bool = False
    pins: int = 1  # interrupt pins that the kernel gives; 0: it takes INTx for broken
    asserted: bool = False  # the device's own pin
    masked: bool = False  # by the kernel, when it signalled or because the command register says so
    unmasked: int = 0  # how often it was told to
    unmasked_by: int = -1  # an eventfd that does

    def bytes_at(self, region: int, offset: int, size: int) -> bytes:
        return os.pread(self.memory, size, (region << REGION_SHIFT) + offset)

    def put(self, region: int, offset: int, data: bytes) -> None:
        os.pwrite(self.memory, data, (region << REGION_SHIFT) + offset)

    @property
    def disabled(self) -> bool:
        """INTx, by the command register."""
        return bool(int.from_bytes(self.bytes_at(CONFIG, 4, 2), "little") & INTX_DISABLE)

    def set_pin(self, asserted: bool) -> None:
        """The device wants an interrupt, or no more."""
        self.asserted = asserted
        status = self.bytes_at(CONFIG, 6, 1)[0]
        self.put(CONFIG, 6, bytes([status | 8 if asserted else status & ~8]))
        self.look()

    def look(self) -> None:
        """Signal INTx and mask it, if there is a reason to and nothing against it (vfio_intx_handler)."""
        if self.asserted and not self.masked and not self.disabled and INTX in self.irqs:
            self.masked = True
            os.eventfd_write(self.irqs[INTX][0], 1)

    def hear(self) -> None:
        """The kernel looks at the eventfd that unmasks (vfio_virqfd)."""
        try:
            os.eventfd_read(self.unmasked_by)
        except BlockingIOError:
            return
        self.masked = self.disabled
        self.look()

    def command_written(self, was_disabled: bool) -> None:
        """The kernel follows the INTx disable bit (vfio_basic_config_write)."""
        if self.disabled and not was_disabled:
            self.masked = True
        elif was_disabled and not self.disabled:
            self.masked = False
            self.look()


class FakeKernel:
    """A System. `open_fds` is what nobody has closed."""

    def __init__(self, root: Path) -> None:
        self.sysfs = root
        self.devices: dict[str, FakeDevice] = {}
        self._dma: dict[int, tuple[int, int]] = {}  # of the container
        self.denied: dict[str, int] = {}
        self.unviable: set[int] = set()
        self.known_to_kvm: set[object] = set()  # groups, and devices' own files, which KVM keeps open
        self.iommufd = IommufdModel()
        self.kvm_refuses = False
        self.unsafe_interrupts = True
        self.open_fds: dict[int, tuple[str, object]] = {}
        self._numbers = itertools.count(100_000)
        (root / "bus/pci/devices").mkdir(parents=True)

    def add(self, address: str, group: int | None = 7, driver: str = "vfio-pci", **how: object) -> FakeDevice:
        """A device, in sysfs too. `group` None: the host has no IOMMU."""
        directory = self.sysfs / "devices/pci0000:00" / address
        directory.mkdir(parents=True)
        (directory / "vendor").write_text("0x8086\n")
        (self.sysfs / "bus/pci/devices" / address).symlink_to(directory)
        if driver:
            bound = self.sysfs / "bus/pci/drivers" / driver
            bound.mkdir(parents=True, exist_ok=True)
            (directory / "driver").symlink_to(bound)
        if group is not None:
            members = self.sysfs / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (directory / "iommu_group").symlink_to(members.parent)
            (members / address).symlink_to(directory)
        device = FakeDevice(address, group or 0, **{"config": config_space(), **how})  # type: ignore[arg-type]
        device.memory = os.memfd_create("device")
        os.ftruncate(device.memory, (CONFIG + 1) << REGION_SHIFT)
        device.put(CONFIG, 0, device.config)
        self.devices[address] = device
        if driver == "vfio-pci":
            self._give_file(directory, list(self.devices).index(address))
        return device

    def _give_file(self, directory: Path, number: int) -> None:
        """One of the device's own."""
        own = directory / f"vfio-dev/vfio{number}"
        own.mkdir(parents=True)
        (self.sysfs / "dev/char").mkdir(parents=True, exist_ok=True)
        (self.sysfs / f"dev/char/{MAJOR}:{number}").symlink_to(own)

    def path(self, address: str) -> Path:
        return self.sysfs / "bus/pci/devices" / address

    def dispose(self) -> None:
        for device in self.devices.values():
            os.close(device.memory)

    @property
    def at_rest(self) -> bool:
        """Whether nobody has anything of it."""
        return not (self.open_fds or self._dma or self.known_to_kvm) and self.iommufd.at_rest

    @property
    def dma(self) -> dict[int, tuple[int, int]]:
        """What the container or the address spaces of iommufd map: address -> (address in the process, bytes)."""
        return dict(itertools.chain(self._dma.items(), *(space.items() for space in self.iommufd.spaces)))

    @property
    def lock_limit(self) -> int:
        """Bytes of memory that may be locked."""
        return self.iommufd.lock_limit

    @lock_limit.setter
    def lock_limit(self, size: int) -> None:
        self.iommufd.lock_limit = size

    # -- System

    def open(self, path: str) -> int:
        if code := self.denied.get(path):
            raise OSError(code, os.strerror(code))
        if path == "/dev/iommu":
            return self._new("iommufd", self.iommufd.open_iommu())
        if path.startswith("/dev/vfio/devices/vfio"):
            number = int(path.removeprefix("/dev/vfio/devices/vfio"))
            return self._new("file", self.iommufd.open_device(list(self.devices.values())[number]))
        name = path.removeprefix("/dev/vfio/")
        if name != "vfio" and int(name) not in {d.group for d in self.devices.values()}:
            raise FileNotFoundError(errno.ENOENT, "no such group")
        if name != "vfio" and (("group", int(name)) in self.open_fds.values() or int(name) in self.known_to_kvm):
            raise OSError(errno.EBUSY, "busy")
        return self._new("container" if name == "vfio" else "group", name if name == "vfio" else int(name))

    def close(self, fd: int) -> None:
        kind, what = self.open_fds.pop(fd)
        if isinstance(what, IommuFile | DeviceFile):
            self.iommufd.close(what)
        if isinstance(what, FakeDevice):
            what.irqs.clear()
        if kind == "container":
            self._dma.clear()

    def duplicate(self, fd: int) -> int:
        kind, what = self._behind(fd)
        assert isinstance(what, IommuFile | DeviceFile), "the others are nobody's to hand in"
        what.descriptors += 1
        return self._new(kind, what)

    def device_number(self, fd: int) -> tuple[int, int]:
        _, what = self._behind(fd)
        return (MAJOR, list(self.devices.values()).index(what.device)) if isinstance(what, DeviceFile) else (0, 0)

    def _behind(self, fd: int) -> tuple[str, object]:
        if fd not in self.open_fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.open_fds[fd]

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        kind, what = self.open_fds[fd]
        number = request - (ord(";") << 8) - 100
        if isinstance(what, IommuFile):
            assert isinstance(argument, bytearray)
            return self.iommufd.iommu_ioctl(what, number + 100, argument)
        if isinstance(what, DeviceFile):
            return self._device_file(what, number, argument)
        result = getattr(self, f"_{kind}")(number, argument, what)
        assert isinstance(result, int)
        return result

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        device = self._hardware(fd)
        return os.pread(device.memory, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        device = self._hardware(fd)
        disabled = device.disabled
        written = os.pwrite(device.memory, data, offset)
        if offset >> REGION_SHIFT == CONFIG and offset & 0xFF < 6 and (offset & 0xFF) + len(data) > 4:
            device.command_written(disabled)
        return written

    def mmap(self, fd: int, size: int, offset: int) -> Mapping:
        device = self._hardware(fd)
        return Mapping(device.memory, size, offset=offset)

    # -- ioctls

    def _new(self, kind: str, what: object) -> int:
        fd = next(self._numbers)
        self.open_fds[fd] = (kind, what)
        return fd

    def _container(self, number: int, argument: int | bytearray, _what: object) -> int:
        if number == 0:
            return 0
        if number == 1:
            return int(argument == 3)
        if number == 2:
            if not self.unsafe_interrupts:
                raise OSError(errno.EPERM, "no interrupt remapping")
            return 0
        assert isinstance(argument, bytearray)
        if number == 13:
            argsz, flags, vaddr, iova, size = struct.unpack("<IIQQQ", argument)
            assert argsz == 32
            assert flags in (1, 2, 3)
            if any(iova < at + n and at < iova + size for at, (_, n) in self._dma.items()):
                raise OSError(errno.EEXIST, "mapped already")
            if sum(n for _, n in self._dma.values()) + size > self.lock_limit:
                raise OSError(errno.ENOMEM, "locked memory")
            self._dma[iova] = (vaddr, size)
            return 0
        if number == 14:
            _, _, iova, size = struct.unpack("<IIQQ", argument)
            assert self._dma.pop(iova)[1] == size
            return 0
        raise OSError(errno.ENOTTY, "no such ioctl")

    def _group(self, number: int, argument: int | bytearray, group: object) -> int:
        assert isinstance(argument, bytearray)
        assert isinstance(group, int)
        if number == 3:
            struct.pack_into("<I", argument, 4, 0 if group in self.unviable else 1)
            return 0
        if number == 4:
            assert self.open_fds[int.from_bytes(argument, "little")][0] == "container"
            return 0
        if number == 6:
            device = self.devices[argument.rstrip(b"\0").decode()]
            device.opened += 1
            return self._new("device", device)
        raise OSError(errno.ENOTTY, "no such ioctl")

    def _device(self, number: int, argument: int | bytearray, device: object) -> int:
        assert isinstance(device, FakeDevice)
        if number == 11:
            if device.fail_reset:
                raise OSError(errno.EIO, "it does not answer")
            device.resets += 1
            return 0
        assert isinstance(argument, bytearray)
        if number == 7:
            struct.pack_into("<IIII", argument, 4, 3, 9, 5, 0)
        elif number == 8:
            self._region_info(argument, device)
        elif number == 9:
            kind = struct.unpack_from("<I", argument, 8)[0]
            if kind > 3:
                raise OSError(errno.EINVAL, "no such interrupt")
            struct.pack_into("<II", argument, 8, kind, (device.pins, 8, 8, 1)[kind])  # no REQ
        elif number == 10:
            return self._set_irqs(argument, device)
        return 0

    def _device_file(self, file: DeviceFile, number: int, argument: int | bytearray) -> int:
        given = bytes(argument) if isinstance(argument, bytearray) else b""
        iommufd: object = None
        if number == 18:
            size, flags, fd, _ = struct.unpack("<IIiI", given)
            assert (size, flags) == (16, 0)
            _, iommufd = self._behind(fd)
        if self.iommufd.device_ioctl(file, number, bytearray(given), iommufd):
            return 0
        return self._device(number, argument, file.device)

    def _hardware(self, fd: int) -> FakeDevice:
        _, what = self.open_fds[fd]
        if isinstance(what, DeviceFile):
            if what.iommufd is None:
                raise OSError(errno.EINVAL, "it is not bound")
            return what.device
        assert isinstance(what, FakeDevice)
        return what

    def _region_info(self, argument: bytearray, device: FakeDevice) -> None:
        argsz, _, index = struct.unpack_from("<III", argument)
        size = device.sizes[index] if index < 6 else 256 if index == CONFIG else 0
        flags = 7 if index < 6 and index != 3 else 3
        at = 0
        if device.sparse is not None and index == 0:
            flags |= 8
            needed = 32 + 16 + 16 * len(device.sparse)
            if argsz >= needed:
                at = 32
                struct.pack_into("<HHIII", argument, 32, 1, 1, 0, len(device.sparse), 0)
                for n, area in enumerate(device.sparse):
                    struct.pack_into("<QQ", argument, 48 + 16 * n, *area)
            argsz = needed
        struct.pack_into("<IIIIQQ", argument, 0, argsz, flags, index, at, size, index << REGION_SHIFT)

    def _set_irqs(self, argument: bytearray, device: FakeDevice) -> int:
        argsz, flags, kind, start, count = struct.unpack_from("<IIIII", argument)
        assert argsz == len(argument)
        if flags == 0x11:
            return self._unmask(kind, start, count, device)
        if flags == 0x14:
            assert (kind, start, count) == (INTX, 0, 1)
            if INTX not in device.irqs:
                raise OSError(errno.EINVAL, "INTx is not on")
            (device.unmasked_by,) = struct.unpack_from("<i", argument, 20)
            return 0
        if not count:
            assert flags == 0x21
            device.irqs.pop(kind, None)
            if kind == INTX:
                device.unmasked_by = -1
            device.allocated.pop(kind, None)
            return 0
        assert flags == 0x24
        if kind in (INTX, MSI, MSIX) and {INTX, MSI, MSIX} & set(device.irqs) - {kind}:
            raise OSError(errno.EINVAL, "two kinds of interrupt at once")
        if kind == INTX and (start, count) != (0, min(device.pins, 1)):
            raise OSError(errno.EINVAL, "there is one pin")
        if kind not in device.irqs:
            if start:
                raise OSError(errno.EINVAL, "vectors start at 0")
            if count > device.vectors:
                return device.vectors
            device.irqs[kind], device.allocated[kind] = {}, count
        if start + count > device.allocated[kind]:
            raise OSError(errno.EINVAL, "vectors cannot be added")
        for n, fd in enumerate(struct.unpack_from(f"<{count}i", argument, 20)):
            if fd >= 0:
                os.fstat(fd)
                device.irqs[kind][start + n] = fd
            else:
                device.irqs[kind].pop(start + n, None)
        if kind == INTX:
            device.masked = device.disabled
            device.look()
        return 0

    def _unmask(self, kind: int, start: int, count: int, device: FakeDevice) -> int:
        assert (kind, start, count) == (INTX, 0, 1)
        if device.fail_unmask:
            raise OSError(errno.EIO, "it does not answer")
        if INTX not in device.irqs:
            raise OSError(errno.EINVAL, "INTx is not on")
        device.unmasked += 1
        if not device.disabled:
            device.masked = False
            device.look()
        return 0


class FakeKvmVfio:
    """KVM's VFIO device: it holds the files of the groups, and of the devices, that it knows."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._known: set[object] = set()

    def add_file(self, fd: int) -> None:
        if self._kernel.kvm_refuses:
            raise KvmError("telling KVM of a host device", errno.EINVAL)
        kind, file = self._kernel.open_fds[fd]
        assert kind in ("group", "file")
        assert file not in self._known
        self._known.add(file)
        self._kernel.known_to_kvm.add(file)
        if isinstance(file, DeviceFile):
            file.descriptors += 1

    def remove_file(self, fd: int) -> None:
        self._forget(self._kernel.open_fds[fd][1])

    def close(self) -> None:
        for file in list(self._known):
            self._forget(file)

    def _forget(self, file: object) -> None:
        self._known.remove(file)
        self._kernel.known_to_kvm.remove(file)
        if isinstance(file, DeviceFile):
            self._kernel.iommufd.close(file)


@contextmanager
def in_the_hosts_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """For VMs: what they take devices from, and tell of them. Nothing of it is in use in the end."""
    kernel = FakeKernel(folder / "sys")
    monkeypatch.setattr("aiovmm.machine.passthrough.HostSystem", lambda: kernel)
    monkeypatch.setattr("aiovmm.machine.hosts.KvmVfio", lambda _vm: FakeKvmVfio(kernel))
    yield kernel
    assert kernel.at_rest
    kernel.dispose()
