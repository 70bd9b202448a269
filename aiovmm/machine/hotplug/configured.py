"""A configuration that follows what is plugged in: a VM that is made of it has the same devices, by the same ids, in the same
slots."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from aiovmm.config import (
    BalloonConfig,
    ConsoleConfig,
    ConsoleMode,
    DebugConsoleConfig,
    DeviceConfig,
    DiskConfig,
    FsConfig,
    GenericVhostUserConfig,
    NetConfig,
    PlacedConfig,
    PmemConfig,
    PvpanicConfig,
    RngConfig,
    RtcConfig,
    VMConfig,
    VsockConfig,
    WatchdogConfig,
)
from aiovmm.config.ids import LISTS, SINGLE, device_ids, is_there, numbered_id, single_id
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import replace

__all__ = ["check_comes_later", "free_id", "pinned", "with_device", "without_device"]

_LISTS: dict[type[PlacedConfig], str] = {
    DiskConfig: "disks",
    NetConfig: "nets",
    PmemConfig: "pmems",
    FsConfig: "fs",
    DeviceConfig: "devices",
    GenericVhostUserConfig: "generic_vhost_user",
}
"""The field of VMConfig of those that a VM may have many of."""
_SINGLE: dict[type[PlacedConfig], str] = {
    RngConfig: "rng",
    VsockConfig: "vsock",
    BalloonConfig: "balloon",
    WatchdogConfig: "watchdog",
    RtcConfig: "rtc",
    ConsoleConfig: "console",
}
"""The field of those that it has one of."""

_FROM_THE_START: dict[type, tuple[str, str]] = {
    PvpanicConfig: ("pvpanic", "it is told of when the machine is built"),
    DebugConsoleConfig: ("debug_console", "a port comes with the machine"),
}
"""What cannot come later: the field of VMConfig that it is given in, and why."""

SlotOf = Callable[[str], int | None]


def check_comes_later(placed: PlacedConfig) -> None:
    """Raises ConfigError for what is there from the start, or never."""
    if type(placed) in _FROM_THE_START:
        field, reason = _FROM_THE_START[type(placed)]
        what = f"{type(placed).__name__} is no device that can be added while the VM is there: {reason}"
        raise ConfigError("add", what, f"VMConfig({field}=)")


def free_id(placed: PlacedConfig, taken: Collection[str]) -> str:
    """What a new device is called, whose configuration does not say. Raises ConfigError for what is no device."""
    if type(placed) not in _LISTS and type(placed) not in _SINGLE:
        raise ConfigError("add", f"{placed!r} is no device's configuration", "like DiskConfig(path=...)")
    if placed.id is not None:
        return placed.id
    if (single := _SINGLE.get(type(placed))) is not None:
        return single_id(single, taken)
    return numbered_id(LISTS[_LISTS[type(placed)]], taken)


def pinned(config: VMConfig, slot_of: SlotOf) -> VMConfig:
    """The same devices, each with its id and its slot, whatever comes or goes beside them."""
    changes: dict[str, Any] = {}
    for field, ids in device_ids(config).items():
        there = getattr(config, field)
        old = (there,) if field in SINGLE else there
        new = tuple(_pinned(item, id_, slot_of) for item, id_ in zip(old, ids, strict=True))
        if any(a is not b for a, b in zip(old, new, strict=True)):
            changes[field] = new[0] if field in SINGLE else new
    return config.with_changes(changes) if changes else config


def with_device(config: VMConfig, placed: PlacedConfig) -> VMConfig:
    """One more. Raises ConfigError for one that cannot be there beside the others."""
    if (single := _SINGLE.get(type(placed))) is not None:
        if is_there(getattr(config, single)):
            raise ConfigError(f"{single}", "is there already, and a VM has one at most", "remove() it first")
        return config.with_changes({single: placed})
    field = _LISTS[type(placed)]
    return config.with_changes({field: (*getattr(config, field), placed)})


def without_device(config: VMConfig, id_: str) -> VMConfig:
    """One less, of a configuration whose devices have ids. The same, if none has that: it is no device of a configuration."""
    changes: dict[str, Any] = {}
    for field in LISTS:
        changes[field] = tuple(item for item in getattr(config, field) if item.id != id_)
    for field in SINGLE:
        item = getattr(config, field)
        if is_there(item) and item.id == id_:
            changes[field] = ConsoleConfig(ConsoleMode.OFF) if field == "console" else None
    return config.with_changes(changes)


def _pinned(item: PlacedConfig, id_: str, slot_of: SlotOf) -> PlacedConfig:
    slot = slot_of(id_)
    slot = item.pci_device_id if slot is None else slot
    return item if (item.id, item.pci_device_id) == (id_, slot) else replace(item, id=id_, pci_device_id=slot)
