"""What a worker says that its guest is made of by now, and where its consoles are. Pure.

The worker may be a guest's by then, and what the program does with a configuration (copy its disks, start another guest of it) is
done with the program's rights. So what is taken of what it says is which of the devices there are that were there or have been
asked for, by which ids and in which slots, how many processors, and how much memory. All else is as the program knows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from aiovmm.config import ConsoleConfig, ConsoleMode, PlacedConfig, VMConfig
from aiovmm.config.ids import LISTS, SINGLE, device_ids, is_there
from aiovmm.errors import ConfigError, SnapshotError
from aiovmm.pool.workers.frames import FROM_WORKER, fits
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.plain import Fields, Plain, State
from aiovmm.snapshot.configuration import to_state

__all__ = ["check_told", "config_of", "place_of"]

T = TypeVar("T")

_PLACE = ("id", "pci_device_id")
"""What a device of a configuration is given when it is plugged in, if that does not say."""
_GROWS = {"cpus": "boot", "memory": "hotplugged_size", "memory_zones": "hotplugged_size"}
_NO_CONSOLE = to_state(ConsoleConfig(ConsoleMode.OFF))
_TERMINAL = re.compile("/dev/pts/[0-9]{1,9}")
_BY_PATH = (ConsoleMode.FILE, ConsoleMode.SOCKET)
_BESIDE = "," * 64 + "x" * (8 << 10)
"""More than what else is in the frame of a configuration, by values and by bytes."""
_GIVEN = 32  # bytes that an id and a slot add to a device, when it is given them


def check_told(config: VMConfig, coming: Sequence[PlacedConfig] = ()) -> None:
    """Raises ConfigError for more devices, with those of `coming`, than a worker could tell of in one frame: it would be silent
    of its guest's end, too."""
    more = [to_state(device) for device in coming]
    count = len(more) + sum(map(len, device_ids(config).values()))
    if not fits({"config": to_state(config), "more": more, "beside": _BESIDE + "x" * _GIVEN * count}, FROM_WORKER):
        raise ConfigError(
            "devices",
            f"{count} are more than a worker process can tell of",
            f"give a guest there fewer: {FROM_WORKER.size >> 10} KiB hold what most guests have of some 450",
        )


def config_of(known: VMConfig, coming: Iterable[PlacedConfig], told: State) -> VMConfig:
    """`known` as `told` has it, with devices of `coming` that have come. Raises SnapshotError for what cannot have become of
    it."""
    before = to_state(known)
    if told.keys() != before.keys():
        raise SnapshotError("config has not the fields of a configuration")
    left = list(coming)
    try:
        return known.with_changes({name: _told(known, before, left, name, told[name]) for name in before})
    except ConfigError as exc:
        raise SnapshotError(f"config is none that can be: {exc}") from exc


def _told(known: VMConfig, before: State, left: list[PlacedConfig], name: str, told: Plain) -> Any:
    mine, where = getattr(known, name), f"config.{name}"
    if name in LISTS:
        return tuple(_devices(where, list(zip(mine, before[name], strict=True)), left, told))
    if name in SINGLE:
        return _single(where, mine, before[name], left, told)
    if name == "memory_zones":
        same = isinstance(told, list) and len(told) == len(mine)
        zones = zip(mine, before[name], told, strict=True) if same else ()
        grown = tuple(_grown(where, _GROWS[name], *zone) for zone in zones)
        return grown if same else _refuse(where)
    if name in _GROWS:
        return _grown(where, _GROWS[name], mine, before[name], told)
    return mine if told == before[name] else _refuse(where)


def _refuse(where: str) -> NoReturn:
    raise SnapshotError(f"{where} is not what the guest was made with, or was asked to have")


def _grown(where: str, field: str, mine: T, before: State, told: Plain) -> T:
    fields = Fields(told, where)
    if {**told, field: 0} != {**before, field: 0}:
        _refuse(where)
    return replace(mine, **{field: fields.number(field)})


def _devices(
    where: str, known: list[tuple[PlacedConfig, State]], left: list[PlacedConfig], told: Plain
) -> Iterator[PlacedConfig]:
    """Those that are left of `known` come first, and in its order."""
    if not isinstance(told, list):
        _refuse(where)
    there = iter(known)
    for item in told:
        if not isinstance(item, dict):
            _refuse(where)
        device = next((device for device, before in there if _is_it(before, item)), None)
        yield _placed(where, device or _of_those_that_come(where, left, item), item)


def _single(where: str, mine: PlacedConfig | None, before: Plain, left: list[PlacedConfig], told: Plain) -> Any:
    if told is None or told == before:
        return mine if told == before else None
    if not isinstance(told, dict):
        _refuse(where)
    if told == _NO_CONSOLE and isinstance(mine, ConsoleConfig):
        return ConsoleConfig(ConsoleMode.OFF)
    same = is_there(mine) and _is_it(before, told)
    return _placed(where, mine if mine is not None and same else _of_those_that_come(where, left, told), told)


def _of_those_that_come(where: str, left: list[PlacedConfig], told: State) -> PlacedConfig:
    for number, device in enumerate(left):
        if _is_it(to_state(device), told):
            return left.pop(number)
    _refuse(where)


def _is_it(before: State, told: State) -> bool:
    """Where it has no id, or no slot, it may have been given one."""
    return told.keys() == before.keys() and all(
        told[name] == value or (value is None and name in _PLACE) for name, value in before.items()
    )


def _placed(where: str, device: PlacedConfig, told: State) -> PlacedConfig:
    fields = Fields(told, where)
    place: dict[str, Any] = {}
    if not fields.absent("id"):
        place["id"] = fields.text("id")
    if not fields.absent("pci_device_id"):
        place["pci_device_id"] = fields.number("pci_device_id", 0, 31)
    return replace(device, **place) if any(getattr(device, name) != place[name] for name in place) else device


def place_of(config: ConsoleConfig, told: str) -> str:
    """Where a console of `config` is, which its guest's worker says is at `told`. Raises SnapshotError for where it cannot be:
    whoever attaches opens that."""
    expected = str(config.path) if config.mode in _BY_PATH else ""
    if config.mode is ConsoleMode.PTY and _TERMINAL.fullmatch(told):
        return told
    if told != expected:
        raise SnapshotError(f"a console is at {told[:200]!r}, which is not where it was to be")
    return told
