"""What devices are called: by the id that the configuration gives, or else by one that is made here, and is nobody's chosen one,
wherever in the configuration that one stands.

A made id is the kind's name and the device's number (`disk0`, `net1`), or the name alone where a VM has one of them (`rng`).
Where somebody has chosen that, it is the name with the first number that nobody has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from aiovmm.config.console import ConsoleConfig, ConsoleMode

if TYPE_CHECKING:
    from aiovmm.config.placed import PlacedConfig
    from aiovmm.config.vm import VMConfig

__all__ = ["LISTS", "SINGLE", "device_ids", "is_there", "numbered_id", "single_id"]

LISTS = {
    "disks": "disk",
    "nets": "net",
    "pmems": "pmem",
    "fs": "fs",
    "devices": "device",
    "generic_vhost_user": "generic",
}
"""By the field of VMConfig: what its devices are called, of those that a VM may have many of."""
SINGLE = ("console", "rng", "vsock", "balloon", "watchdog", "rtc")
"""The fields of those that it has one of, which are their names too."""


def device_ids(config: VMConfig) -> Mapping[str, tuple[str, ...]]:
    """By fields of the configuration that have devices: their ids, in its order."""
    chosen = config.chosen_ids
    ids = {field: _of_list(name, items, chosen) for field, name in LISTS.items() if (items := getattr(config, field))}
    for field in SINGLE:
        item: PlacedConfig | None = getattr(config, field)
        if is_there(item):
            assert item is not None
            ids[field] = (item.id or single_id(field, chosen),)
    return ids


def _of_list(name: str, items: Sequence[PlacedConfig], chosen: Collection[str]) -> tuple[str, ...]:
    wanted = [item.id or f"{name}{number}" for number, item in enumerate(items)]
    if not chosen:
        return tuple(wanted)
    others = _free(name, {*chosen, *wanted})
    return tuple(
        next(others) if item.id is None and id_ in chosen else id_ for item, id_ in zip(items, wanted, strict=True)
    )


def single_id(name: str, taken: Collection[str]) -> str:
    """For a device that a VM has one of."""
    return name if name not in taken else numbered_id(name, taken)


def numbered_id(name: str, taken: Collection[str]) -> str:
    """For one more of those that it may have many of."""
    return next(_free(name, taken))


def _free(name: str, taken: Collection[str]) -> Iterator[str]:
    return (id_ for number in count() if (id_ := f"{name}{number}") not in taken)


def is_there(item: PlacedConfig | None) -> bool:
    """A console that is off is none."""
    return item is not None and not (isinstance(item, ConsoleConfig) and item.mode is ConsoleMode.OFF)
