"""What a VM is made of at the moment, as the configuration of those that are to go on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiovmm.runtime.dataclass import replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiovmm.config import RateLimit, RateLimitGroupConfig, VMConfig
    from aiovmm.config.rates import LimitedConfig
    from aiovmm.devices.limits import Limiter
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["config_of"]

_NO_LIMIT = 1 << 60
"""Bytes a second: of a group that has been rid of its limit, since a group without one is none."""


def config_of(vm: VM) -> VMConfig:
    """Its configuration, with what was made up for it and its guest has seen: the addresses of its network devices; and with the
    limits that it, its disks and its network devices have now, whatever they had at first."""
    config, changes = vm.config, dict[str, Any]()
    if vm.limits != config.limits:
        changes["limits"] = vm.limits
    parts = vm._power.parts
    if parts is not None and (config.disks or config.nets or config.rate_limit_groups):
        from aiovmm.config.ids import device_ids

        ids = device_ids(config)
        devices = {plugged.id: plugged.device for plugged in vm._power.plugged}
        changes["disks"] = _disks(config, [devices.get(id_) for id_ in ids.get("disks", ())])
        changes["nets"] = _nets(config, [devices.get(id_) for id_ in ids.get("nets", ())])
        changes["rate_limit_groups"] = _groups(config, parts.rate_limits)
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}
    return replace(config, **changes) if changes else config


def _disks(config: VMConfig, devices: Sequence[VirtioDevice | None]) -> tuple[object, ...]:
    if not config.disks:
        return config.disks
    from aiovmm.devices.virtio.blk import BlkDevice

    return tuple(
        replace(disk, **_rates(disk, device.rate_limit))
        if isinstance(device, BlkDevice) and disk.rate_limit_group is None
        else disk
        for disk, device in zip(config.disks, devices, strict=True)
    )


def _nets(config: VMConfig, devices: Sequence[VirtioDevice | None]) -> tuple[object, ...]:
    if not config.nets:
        return config.nets
    from aiovmm.devices.virtio.net import NetDevice, format_mac

    return tuple(
        replace(net, mac=net.mac or format_mac(device.mac), **_rates(net, device.rate_limit))
        if isinstance(device, NetDevice)
        else net
        for net, device in zip(config.nets, devices, strict=True)
    )


def _groups(config: VMConfig, limiters: Mapping[str, Limiter]) -> tuple[object, ...]:
    return tuple(_group(group, limiters[group.id].limit) for group in config.rate_limit_groups)


def _group(group: RateLimitGroupConfig, limit: RateLimit | None) -> RateLimitGroupConfig:
    from aiovmm.config import RateLimit

    if limit is None or not (limit.bw_size or limit.ops_size):
        limit = RateLimit(bw_size=_NO_LIMIT)
    return group if limit == group else replace(group, **_keys(limit))


def _rates(device: LimitedConfig, limit: RateLimit | None) -> dict[str, Any]:
    """What of the device's configuration is otherwise by now."""
    if limit == device.rate_limit:
        return {}
    from aiovmm.config import RateLimit

    return _keys(limit or RateLimit())


def _keys(limit: RateLimit) -> dict[str, Any]:
    from aiovmm.config.rates import RATES

    return {key: getattr(limit, key) for key in RATES}
