"""VMStats as plain data, as they come from another process, and back. Pure.

Each class is read by the annotations of its fields, so that what is added to one is there as well.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from aiovmm.errors import SnapshotError, printable
from aiovmm.lifecycle import VMState
from aiovmm.runtime.plain import Fields, Plain, State
from aiovmm.stats.values import ConsoleStats, DeviceStats, LoopStats, VMStats

__all__ = ["from_state", "to_state"]

_MOST = 1 << 16  # of anything that there are several of
_LONGEST = 256  # characters of a name: of a device, a task

Reader = Callable[[Plain, str], Any]


def to_state(stats: Any) -> State:
    """Of a VMStats, or of one of the values in it."""
    return {field.name: _plain(getattr(stats, field.name)) for field in fields(stats)}


def _plain(value: Any) -> Plain:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return to_state(value) if is_dataclass(value) else value


def from_state(state: Plain) -> VMStats:
    """The inverse. Raises SnapshotError for what is none."""
    made: VMStats = _made(VMStats, state, "stats")
    return made


def _made(cls: Any, state: Plain, where: str) -> Any:
    Fields(state, where)  # it has fields
    types = {field.name: str(field.type) for field in fields(cls)}  # ours, and the standard library's
    if missing := sorted(types.keys() - state.keys()):
        raise SnapshotError(f"{where}.{missing[0]} is missing")
    if unknown := sorted(state.keys() - types.keys()):
        raise SnapshotError(f"{where} has fields that this version does not know: {ascii(unknown)[1:-1]}")
    return cls(**{name: _value(types[name], value, f"{where}.{name}") for name, value in state.items()})


def _value(annotation: str, value: Plain, where: str) -> Any:
    kind, _, rest = annotation.removesuffix(" | None").partition("[")
    if value is None and annotation.endswith(" | None"):
        return None
    if kind == "tuple" and isinstance(value, list) and len(value) <= _MOST:
        return tuple(_value(rest.removesuffix(", ...]"), item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind == "dict" and isinstance(value, dict) and len(value) <= _MOST:
        inner = rest.removeprefix("str, ").removesuffix("]")
        names = [printable(key[:_LONGEST]) for key in value]  # they become labels of an exporter's
        return {name: _value(inner, item, f"{where}.{name}") for name, item in zip(names, value.values(), strict=True)}
    if kind in (simple := _simple()):
        return simple[kind](value, where)
    if kind in (classes := _classes()):
        return _made(classes[kind], value, where)
    raise SnapshotError(f"{where} is no {annotation}")


def _simple() -> Mapping[str, Reader]:
    return {"int": _int, "float": _float, "str": _str, "VMState": _state}


def _int(value: Plain, where: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise SnapshotError(f"{where} is no number")
    return value


def _float(value: Plain, where: str) -> float:
    is_number = type(value) is float or (type(value) is int and abs(value) < 1 << 64)  # larger ones are none as a float
    if not is_number or not math.isfinite(value):
        raise SnapshotError(f"{where} is no number")
    return float(value)


def _str(value: Plain, where: str) -> str:
    if not isinstance(value, str):
        raise SnapshotError(f"{where} is no text")
    return value


def _state(value: Plain, where: str) -> VMState:
    try:
        return VMState(value)
    except ValueError:
        raise SnapshotError(f"{where} is no state of a VM") from None


@cache
def _classes() -> Mapping[str, type]:
    """By name; counters of devices are imported for who asks."""
    from aiovmm.devices.virtio.blk.counters import BlkCounters, Latency
    from aiovmm.devices.virtio.net.counters import NetCounters
    from aiovmm.devices.virtio.vsock.counters import VsockCounters
    from aiovmm.kvm.vcpu import VcpuCounters
    from aiovmm.virtqueue.config import QueueCounters

    found = (ConsoleStats, DeviceStats, LoopStats, BlkCounters, Latency, NetCounters, VsockCounters, VcpuCounters)
    return {cls.__name__: cls for cls in (*found, QueueCounters)}
