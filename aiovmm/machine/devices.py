"""Virtio devices from their configuration. Each kind's module is imported when the first such device is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiovmm.config import (
    BalloonConfig,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
    ImageType,
    NetConfig,
    PlacedConfig,
    PmemConfig,
    RngConfig,
    RtcConfig,
    VMConfig,
    VsockConfig,
    WatchdogConfig,
)
from aiovmm.errors import ConfigError
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.iommu import refuse_remote, refuse_remote_device, wants_iommu
from aiovmm.machine.parts import MachineParts
from aiovmm.runtime.tasks import in_thread
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.devices.limits import Limiter
    from aiovmm.devices.virtio.blk.image import DiskImage

__all__ = ["join_console", "look_at_images", "make_device", "plug_configured"]


Kinds = Mapping[str, ImageType | None]
"""By the ids of disks, whose images were looked at."""


async def look_at_images(name: str, disks: Mapping[str, DiskConfig]) -> Kinds:
    """What kind of image each is, if it is another's: read in a thread, where they may wait for a server. `name` is the VM's."""
    if not disks:
        return {}
    from aiovmm.devices.virtio.blk.opening import kind_of, looks_alone_tell

    if not any(looks_alone_tell(disk) for disk in disks.values()):
        return {id_: kind_of(disk) for id_, disk in disks.items()}
    return await in_thread(f"{name}: look at images", lambda: {id_: kind_of(disk) for id_, disk in disks.items()})


def plug_configured(parts: MachineParts, kinds: Kinds = MappingProxyType({})) -> None:
    """Make and plug what the configuration asks for, in the reference's order: guests name their interfaces by PCI slots. Devices
    of the host come after these, and the IOMMU last."""
    config = parts.config
    refuse_remote(config)
    _plug_console(parts)
    _plug_disks(parts, kinds)
    _plug_nets(parts)
    _plug_rng(parts)
    _plug_generic(parts)
    _plug_fs(parts)
    _plug_pmems(parts)
    _plug_vsock(parts)
    _plug_balloon(parts)
    _plug_watchdog(parts)
    _plug_rtc(parts)
    if config.memory.hotplug_size or any(zone.hotplug_size for zone in config.memory_zones):
        from aiovmm.machine.hotplug.memory import plug_mem

        plug_mem(parts)
    _plug_iommu(parts)
    _plug_host_devices(parts)


def make_device(parts: MachineParts, placed: PlacedConfig, id_: str, kinds: Kinds) -> VirtioDevice:
    """The device that `placed` describes, which comes later than the others; of a disk `kinds` has that of its image. Raises
    ConfigError for what cannot."""
    config = parts.config
    match placed:
        case DiskConfig():
            group = placed.rate_limit_group
            limiter = parts.rate_limits[group] if group is not None else None
            return _disk(config, placed, id_, limiter, kinds.get(id_))
        case NetConfig():
            return _net(config, placed, id_)
        case FsConfig():
            return _fs(config, placed, id_)
        case RngConfig():
            from aiovmm.devices.virtio.rng import RngDevice

            return RngDevice.from_config(placed)
        case VsockConfig():
            from aiovmm.devices.virtio.vsock import VsockDevice

            return VsockDevice.from_config(placed, _guest_runs(parts))
        case PmemConfig():
            from aiovmm.devices.virtio.pmem import PmemDevice

            return PmemDevice.from_config(placed)
        case BalloonConfig():
            from aiovmm.devices.virtio.balloon import BalloonDevice

            return BalloonDevice.from_config(placed, config.most_ram)
        case WatchdogConfig():
            return _watchdog(parts, placed)
        case RtcConfig():
            from aiovmm.devices.virtio.rtc import RtcDevice

            return RtcDevice()
        case GenericVhostUserConfig():
            return _generic(config, placed, id_)
        case ConsoleConfig(mode=ConsoleMode.OFF | ConsoleMode.TTY):
            hint = "pty, socket=PATH, file=PATH, or null: the program's own streams"
            raise ConfigError("console.mode", f"of a console that comes later is not {placed.mode.value}", hint)
        case ConsoleConfig():
            return _console(parts)
    raise ConfigError("add", f"{type(placed).__name__} is no device that can be added while the VM is there")


def _ids(parts: MachineParts, field: str) -> tuple[str, ...]:
    return parts.ids.get(field, ())


def _id(parts: MachineParts, field: str) -> str:
    return parts.ids[field][0]


def _plug_rng(parts: MachineParts) -> None:
    if (rng := parts.config.rng) is not None:
        from aiovmm.devices.virtio.rng import RngDevice

        parts.plug(RngDevice.from_config(rng), _id(parts, "rng"), rng)


def _plug_console(parts: MachineParts) -> None:
    if parts.config.console.mode is not ConsoleMode.OFF:
        device = _console(parts)
        join_console(parts, device)
        parts.plug(device, _id(parts, "console"), parts.config.console)


def _console(parts: MachineParts) -> VirtioDevice:
    from aiovmm.devices.virtio.console import ConsoleDevice

    return ConsoleDevice(parts.console_output, call_later=_call_later)


_CONSOLE_ID = 3  # VIRTIO 1.2 §5


def join_console(parts: MachineParts, device: VirtioDevice) -> None:
    """What is written to the VM's console goes to `device`, if it is one. It is plugged in, or about to be."""
    if device.device_id != _CONSOLE_ID:  # whose modules a machine may do without
        return
    from aiovmm.devices.virtio.console import ConsoleDevice

    if isinstance(device, ConsoleDevice):
        parts.console.appear()
        parts.console.connect(device)


def _call_later(delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    """On the loop that the device runs on: there may be none yet when it is plugged."""
    return asyncio.get_running_loop().call_later(delay, callback)


def _plug_disks(parts: MachineParts, kinds: Kinds) -> None:
    groups = parts.rate_limits = _rate_limit_groups(parts.config)
    for id_, disk in zip(_ids(parts, "disks"), parts.config.disks, strict=True):
        limiter = groups[disk.rate_limit_group] if disk.rate_limit_group is not None else None
        parts.plug(_disk(parts.config, disk, id_, limiter, kinds.get(id_), parts.images.get(id_)), id_, disk)


def _rate_limit_groups(config: VMConfig) -> dict[str, Limiter]:
    if not config.rate_limit_groups:
        return {}
    from aiovmm.devices.limits import Limiter

    return {group.id: Limiter(group) for group in config.rate_limit_groups}


def _disk(
    config: VMConfig,
    disk: DiskConfig,
    id_: str,
    limiter: Limiter | None,
    kind: ImageType | None,
    image: Callable[[], DiskImage] | None = None,
) -> VirtioDevice:
    """`image` opens what is to be behind it, if that is not what `disk` names."""
    if image is not None:
        from aiovmm.devices.virtio.blk import BlkDevice

        return BlkDevice.from_config(disk, id_, limiter, image)
    if disk.vhost_user:
        from aiovmm.devices.virtio.vhost_user import VhostUserBlk

        _check_shared(config, "disk")
        return VhostUserBlk.from_config(disk, id_)
    if kind is not None:
        from aiovmm.devices.virtio.vhost_user.image import ImageBlk

        refuse_remote_device(config, "disk", disk)
        _check_shared(config, "disk")
        return ImageBlk(disk, kind, id_)
    from aiovmm.devices.virtio.blk import BlkDevice

    return BlkDevice.from_config(disk, id_, limiter)


def _plug_nets(parts: MachineParts) -> None:
    for id_, net in zip(_ids(parts, "nets"), parts.config.nets, strict=True):
        parts.plug(_net(parts.config, net, id_), id_, net)


def _net(config: VMConfig, net: NetConfig, id_: str) -> VirtioDevice:
    if net.vhost_user:
        from aiovmm.devices.virtio.vhost_user import VhostUserNet

        _check_shared(config, "net")
        return VhostUserNet.from_config(net, id_)
    from aiovmm.devices.virtio.net.configured import make_net

    return make_net(net, id_)


def _plug_vsock(parts: MachineParts) -> None:
    if (vsock := parts.config.vsock) is not None:
        from aiovmm.devices.virtio.vsock import VsockDevice

        parts.plug(VsockDevice.from_config(vsock, _guest_runs(parts)), _id(parts, "vsock"), vsock)


def _plug_balloon(parts: MachineParts) -> None:
    if (balloon := parts.config.balloon) is not None:
        from aiovmm.devices.virtio.balloon import BalloonDevice

        parts.plug(BalloonDevice.from_config(balloon, parts.config.most_ram), _id(parts, "balloon"), balloon)


def _plug_generic(parts: MachineParts) -> None:
    for id_, generic in zip(_ids(parts, "generic_vhost_user"), parts.config.generic_vhost_user, strict=True):
        parts.plug(_generic(parts.config, generic, id_), id_, generic)


def _generic(config: VMConfig, generic: GenericVhostUserConfig, id_: str) -> VirtioDevice:
    from aiovmm.devices.virtio.vhost_user import VhostUserGeneric

    _check_shared(config, "device")
    return VhostUserGeneric.from_config(generic, id_)


def _plug_watchdog(parts: MachineParts) -> None:
    if (watchdog := parts.config.watchdog) is not None:
        parts.plug(_watchdog(parts, watchdog), _id(parts, "watchdog"), watchdog)


def _watchdog(parts: MachineParts, watchdog: WatchdogConfig) -> VirtioDevice:
    from aiovmm.devices.virtio.watchdog import WatchdogDevice

    owner = parts.owner

    def silent(resets: bool) -> None:
        if owner is not None:
            owner.guest_silent(resets=resets)

    return WatchdogDevice.from_config(watchdog, silent, _guest_runs(parts))


def _guest_runs(parts: MachineParts) -> Callable[[], bool]:
    owner = parts.owner
    return lambda: owner is None or owner.guest_runs


def _plug_rtc(parts: MachineParts) -> None:
    if (rtc := parts.config.rtc) is not None:
        id_ = _id(parts, "rtc")
        parts.plug(make_device(parts, rtc, id_, {}), id_, rtc)


def _plug_pmems(parts: MachineParts) -> None:
    for id_, pmem in zip(_ids(parts, "pmems"), parts.config.pmems, strict=True):
        from aiovmm.devices.virtio.pmem import PmemDevice

        parts.plug(PmemDevice.from_config(pmem), id_, pmem)


def _plug_iommu(parts: MachineParts) -> None:
    if wants_iommu(parts):
        from aiovmm.devices.virtio.iommu import IommuDevice

        width = parts.config.platform.iommu_address_width
        parts.plug(IommuDevice(board_of_host().messages(parts.config), width), parts.free_id("iommu"))


def _plug_fs(parts: MachineParts) -> None:
    for id_, fs in zip(_ids(parts, "fs"), parts.config.fs, strict=True):
        parts.plug(_fs(parts.config, fs, id_), id_, fs)


def _fs(config: VMConfig, fs: FsConfig, id_: str) -> VirtioDevice:
    from aiovmm.devices.virtio.vhost_user import VhostUserFs

    _check_shared(config, "fs")
    return VhostUserFs.from_config(fs, id_)


def _check_shared(config: VMConfig, option: str) -> None:
    """A back end maps the guest's memory itself."""
    if config.memory.shared is False and not config.memory_zones:
        raise ConfigError("memory.shared", f"is off, and a vhost-user {option} needs shared memory", "leave it out")


def _plug_host_devices(parts: MachineParts) -> None:
    if parts.config.devices:
        from aiovmm.machine.passthrough import Passthrough

        parts.passthrough = Passthrough(parts.config)
