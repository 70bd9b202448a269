"""A VMConfig as plain data, what of it a restored guest may have otherwise, and how a fork's differs from its template's."""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Mapping
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from aiovmm.config import ConsoleConfig, ConsoleMode, PlacedConfig, VMConfig
from aiovmm.config.checks import encoded
from aiovmm.errors import ConfigError, SnapshotError
from aiovmm.runtime.dataclass import field_types, replace
from aiovmm.runtime.plain import Fields, Plain, State

__all__ = ["changed", "device_from_state", "from_state", "named", "to_state"]

_CLASS = re.compile(r"[A-Z]\w+")
_PLACED = ("disks", "nets", "pmems", "fs", "devices", "generic_vhost_user")
_ONE = ("rng", "vsock", "balloon", "watchdog", "pvpanic", "rtc")
_PLACE = ("id", "pci_segment", "pci_device_id", "iommu", "num_queues", "queue_size")
_MEMORY = ("hotplug_size", "hotplugged_size", "hotplug_method")
_PROCESSORS = ("boot", "max", "topology", "max_phys_bits", "nested", "features")


def to_state(config: Any) -> State:
    """Of a VMConfig, or any configuration inside one."""
    return {name: _plain(getattr(config, name)) for name in field_types(config)}


def _plain(value: Any) -> Plain:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return to_state(value) if hasattr(type(value), "__shape__") else value


def from_state(state: State) -> VMConfig:
    """The configuration. Raises SnapshotError for what is none."""
    config: VMConfig = _checked(VMConfig, state)
    return config


def device_from_state(kind: str, state: State) -> PlacedConfig:
    """That of one device, by the name of its class. Raises SnapshotError for what is none."""
    kinds = [_inner(VMConfig, annotation) for annotation in field_types(VMConfig).values()]
    found = [cls for cls in kinds if cls is not None and issubclass(cls, PlacedConfig) and cls.__name__ == kind]
    if not found:
        raise SnapshotError(f"{kind!r} is no configuration of a device")
    device: PlacedConfig = _checked(found[0], state)
    return device


def _checked(cls: type, state: State) -> Any:
    try:
        return _made(cls, state, "config")
    except (ConfigError, TypeError, ValueError, OverflowError) as exc:
        raise SnapshotError(f"config is none that can be: {exc}") from exc


def _made(cls: type, state: Plain, where: str) -> Any:
    Fields(state, where)  # it has fields
    types = field_types(cls)
    if unknown := sorted(state.keys() - types.keys()):
        raise SnapshotError(f"{where} has fields that this version does not know: {ascii(unknown)[1:-1]}")
    return cls(**{name: _value(cls, types[name], value, f"{where}.{name}") for name, value in state.items()})


def _value(cls: type, annotation: str, value: Plain, where: str) -> Any:
    if isinstance(value, bytes):
        raise SnapshotError(f"{where} is bytes")
    if "float" in annotation and isinstance(value, str):
        return float(value)
    if not isinstance(value, (list, dict)) or (inner := _inner(cls, annotation)) is None:
        return value
    if isinstance(value, dict):
        return _made(inner, value, where)
    return tuple(_made(inner, item, f"{where}[{i}]") for i, item in enumerate(value))


@cache
def _inner(cls: type, annotation: str) -> type | None:
    """The configuration class that an annotation names."""
    names = vars(sys.modules[cls.__module__])
    found = [names.get(name) for name in _CLASS.findall(annotation)]
    return next((c for c in found if isinstance(c, type) and hasattr(c, "__shape__")), None)


# -- another guest of the same machine


def changed(config: VMConfig, overrides: Mapping[str, Any]) -> VMConfig:
    """`config` with some fields replaced, for the same machine: what its guest has seen of it stays, also the address of a
    network device that is given none. Raises ConfigError."""
    new = _with_addresses(config, config.with_changes(overrides))
    _same("memory.size", config.ram_size, new.ram_size)
    for part, names in (("memory", _MEMORY), ("cpus", _PROCESSORS)):
        before, after = getattr(config, part), getattr(new, part)
        for name in names if before is not after else ():
            _same(f"{part}.{name}", getattr(before, name), getattr(after, name))
    if config.memory_zones or new.memory_zones:
        _same("memory_zones", _sizes(config), _sizes(new))
    _same("platform", config.platform, new.platform)
    _stays("serial", _is_there(config.serial), _is_there(new.serial))
    _stays("console", _is_there(config.console), _is_there(new.console))
    _same_place("console", config.console, new.console)
    for name in _PLACED:
        old, now = getattr(config, name), getattr(new, name)
        if old is now:  # as most are: a fork takes its template's
            continue
        _same(f"the number of {name}", len(old), len(now))
        for i, (one, other) in enumerate(zip(old, now, strict=True)):
            if one is not other:
                _same_place(f"{name}[{i}]", one, other)
    for name in _ONE:
        one, other = getattr(config, name), getattr(new, name)
        if one is other:
            continue
        _stays(name, one is not None, other is not None)
        if one is not None:
            _same_place(name, one, other)
    return new


def _with_addresses(config: VMConfig, new: VMConfig) -> VMConfig:
    if new.nets is config.nets or all(net.mac is not None for net in new.nets):
        return new
    known = [net.mac for net in config.nets]
    nets = [replace(net, mac=net.mac or mac) for net, mac in zip_longest(new.nets, known[: len(new.nets)])]
    return replace(new, nets=tuple(nets))


def named(config: VMConfig, name: str) -> VMConfig:
    """`config` with another name, which alone is checked. Raises ConfigError."""
    if not isinstance(name, str):
        return config.with_changes({"name": name})  # which refuses it
    encoded("name", name, 64)
    new = object.__new__(VMConfig)
    new.__dict__.update(config.__dict__, name=name)
    return new


def _sizes(config: VMConfig) -> list[tuple[str, int, int, int]]:
    return [(zone.id, zone.size, zone.hotplug_size, zone.hotplugged_size) for zone in config.memory_zones]


def _is_there(console: ConsoleConfig) -> bool:
    return console.mode is not ConsoleMode.OFF


def _same_place(option: str, old: PlacedConfig, new: PlacedConfig) -> None:
    for name in _PLACE:
        if hasattr(old, name):
            _same(f"{option}.{name}", getattr(old, name), getattr(new, name))


def _stays(option: str, there: bool, now: bool) -> None:
    if there != now:
        reason = "cannot go: the guest has seen it" if there else "cannot come: the guest has seen that there is none"
        raise ConfigError(option, reason, "leave it as it was saved")


def _same(option: str, old: Any, new: Any) -> None:
    if old != new:
        raise ConfigError(
            option, f"cannot become {new!r}: the guest has seen it as {old!r}", "leave it as it was saved"
        )
