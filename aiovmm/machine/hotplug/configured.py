"""A configuration that follows what is plugged in: a VM that is made of it has the same devices, by the same ids, in the same
slots."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import count
from typing import Any

from aiovmm.config import (
    BalloonConfig,
    ConsoleConfig,
    ConsoleMode,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
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
from aiovmm.runtime.dataclass import replace

__all__ = ["free_id", "pinned", "with_device", "without_device"]

_LISTS: dict[type[PlacedConfig], tuple[str, str]] = {
    DiskConfig: ("disks", "disk"),
    NetConfig: ("nets", "net"),
    PmemConfig: ("pmems", "pmem"),
    FsConfig: ("fs", "fs"),
    DeviceConfig: ("devices", "device"),
    GenericVhostUserConfig: ("generic_vhost_user", "generic"),
}
"""(the field of VMConfig, what its devices are called) of those that a VM may have many of."""
_SINGLE: dict[type[PlacedConfig], str] = {
    RngConfig: "rng",
    VsockConfig: "vsock",
    BalloonConfig: "balloon",
    WatchdogConfig: "watchdog",
    RtcConfig: "rtc",
    ConsoleConfig: "console",
}
"""The field of those that it has one of, which is its name too."""

SlotOf = Callable[[str], int | None]


def free_id(placed: PlacedConfig, taken: Collection[str]) -> str:
    """What a new device is called, whose configuration does not say. Raises ConfigError for what is no device."""
    if type(placed) not in _LISTS and type(placed) not in _SINGLE:
        raise ConfigError("add", f"{placed!r} is no device's configuration", "like DiskConfig(path=...)")
    if placed.id is not None:
        return placed.id
    if (single := _SINGLE.get(type(placed))) is not None:
        return single
    name = _LISTS[type(placed)][1]
    return next(id_ for number in count() if (id_ := f"{name}{number}") not in taken)


def pinned(config: VMConfig, slot_of: SlotOf) -> VMConfig:
    """The same devices, each with its id and its slot, whatever comes or goes beside them."""
    changes: dict[str, Any] = {
        field: tuple(_pinned(item, f"{name}{n}", slot_of) for n, item in enumerate(getattr(config, field)))
        for field, name in _LISTS.values()
    }
    changes |= {
        field: _pinned(item, field, slot_of) for field in _SINGLE.values() if _there(item := getattr(config, field))
    }
    return config.with_changes(changes)


def with_device(config: VMConfig, placed: PlacedConfig) -> VMConfig:
    """One more. Raises ConfigError for one that cannot be there beside the others."""
    if (single := _SINGLE.get(type(placed))) is not None:
        if _there(getattr(config, single)):
            raise ConfigError(f"{single}", "is there already, and a VM has one at most", "remove() it first")
        return config.with_changes({single: placed})
    field = _LISTS[type(placed)][0]
    return config.with_changes({field: (*getattr(config, field), placed)})


def without_device(config: VMConfig, id_: str) -> VMConfig:
    """One less, of a configuration whose devices have ids. The same, if none has that: it is no device of a configuration."""
    changes: dict[str, Any] = {}
    for field, _ in _LISTS.values():
        changes[field] = tuple(item for item in getattr(config, field) if item.id != id_)
    for field in _SINGLE.values():
        item = getattr(config, field)
        if _there(item) and item.id == id_:
            changes[field] = ConsoleConfig(ConsoleMode.OFF) if field == "console" else None
    return config.with_changes(changes)


def _there(item: PlacedConfig | None) -> bool:
    return item is not None and not (isinstance(item, ConsoleConfig) and item.mode is ConsoleMode.OFF)


def _pinned(item: PlacedConfig, name: str, slot_of: SlotOf) -> PlacedConfig:
    id_ = item.id or name
    slot = slot_of(id_)
    return replace(item, id=id_, pci_device_id=item.pci_device_id if slot is None else slot)
