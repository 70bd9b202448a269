"""What a snapshot has of PCI: all functions by their slots, the claims of their BARs, and all of them suspended together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from aiovmm.bus import Space
from aiovmm.errors import SnapshotError
from aiovmm.pci.aperture import Aperture, BarId
from aiovmm.pci.bar import Bar
from aiovmm.pci.function import PciFunction
from aiovmm.runtime.awake import awake_budget, awake_timeout
from aiovmm.runtime.plain import Fields, Plain, State, copied, once

__all__ = [
    "QUIESCE_LIMIT",
    "device_state",
    "load_device",
    "load_functions",
    "read_claims",
    "save_segment",
    "suspend_all",
    "unsuspend_all",
]

QUIESCE_LIMIT = 5.0
"""Seconds that functions have to end what is with the host, while the guest stands still."""


class Savable(Protocol):
    """A device, which may be the embedder's."""

    @property
    def name(self) -> str:
        """For errors."""

    def save(self) -> State | Awaitable[State]:
        """See VirtioDevice, PortDevice."""

    def load(self, state: State) -> Awaitable[None] | None:
        """See VirtioDevice, PortDevice."""


Slots = Mapping[int, PciFunction]


def save_segment(slots: Slots, aperture: Aperture) -> State:
    """Of suspended functions. Raises SnapshotError."""
    claims, served = aperture.save()
    return {
        "functions": [{"slot": slot, "name": slots[slot].name, "state": slots[slot].save()} for slot in sorted(slots)],
        "claims": [[owner.slot, owner.bar] for owner in claims],
        "served": [[owner.slot, owner.bar] for owner in served],
    }


async def load_functions(state: State, slots: Slots, segment: int) -> None:
    """Raises SnapshotError if others were saved than are plugged in."""
    saved = once(state, _read_functions, segment)
    for slot, (name, _) in saved.items():
        if slot not in slots:
            raise SnapshotError(f"{name} was in slot {slot} of PCI segment {segment}, where nothing is: plug it in")
    for slot in sorted(slots.keys() - saved.keys()):
        raise SnapshotError(
            f"{slots[slot].name} is in slot {slot} of PCI segment {segment}, where nothing was: leave it out"
        )
    for slot in sorted(slots):
        await _load(slots[slot], saved[slot][1])


def has_function(state: State, slot: int, segment: int) -> bool:
    """Whether anything was in a slot. Raises SnapshotError."""
    return slot in once(state, _read_functions, segment)


def _read_functions(state: State, segment: int) -> dict[int, tuple[str, State]]:
    """By slots, each with its name."""
    saved = {}
    for function in Fields(state, f"PCI segment {segment}").several("functions"):
        slot, name = function.number("slot", 0, 31), function.text("name")
        saved[slot] = name, function.state("state")
        function.end()
    return saved


async def _load(function: PciFunction, state: State) -> None:
    try:
        await function.load(state)
    except SnapshotError as exc:
        raise SnapshotError(f"{function.name}: {exc}") from exc


def read_claims(state: State, slots: Slots) -> tuple[dict[BarId, tuple[Space, int, int]], list[BarId]]:
    """What BARs decode by their functions' registers, which are loaded, in the order of claiming; and those that are
    served. Raises SnapshotError."""
    order, served = once(state, _read_owners)
    bars = {BarId(slot, bar.index): (bar, slots[slot]) for slot in sorted(slots) for bar in slots[slot].bars}
    claims = {
        owner: claim
        for owner in dict.fromkeys((*order, *bars))
        if owner in bars and (claim := _claim(*bars[owner])) is not None
    }
    return claims, list(served)


def _read_owners(state: State) -> tuple[tuple[BarId, ...], tuple[BarId, ...]]:
    """Who claims, in order, and who is served."""
    fields = Fields(state, "PCI segment")
    fields.list("functions")
    owners = tuple(_owners(fields, "claims")), tuple(_owners(fields, "served"))
    fields.end()
    return owners


def _claim(bar: Bar, function: PciFunction) -> tuple[Space, int, int] | None:
    base = bar.decoded(function.config)
    return None if base is None else (bar.space, base, bar.size)


def _owners(fields: Fields, name: str) -> list[BarId]:
    return [_owner(entry, f"{fields.where}.{name}") for entry in fields.list(name, most=32 * 6)]


def _owner(entry: Plain, where: str) -> BarId:
    if not isinstance(entry, list) or len(entry) != 2 or any(type(number) is not int for number in entry):
        raise SnapshotError(f"{where} has an entry that is no slot and BAR")
    return BarId(*entry)


async def device_state(device: Savable) -> State:
    """What its `save` gives, which may be the embedder's. Raises SnapshotError."""
    try:
        saved = device.save()
        state = saved if isinstance(saved, dict) else await saved
    except SnapshotError:
        raise
    except Exception as exc:
        raise SnapshotError(f"{device.name}: its save() failed: {exc!r}") from exc
    if not isinstance(state, dict):
        raise SnapshotError(f"{device.name}: its save() gave {type(state).__name__}, not a dict")
    plain: State = copied(state, device.name)  # it is written when the guest goes on already
    return plain


async def load_device(device: Savable, state: State) -> None:
    """By its `load`, which may be the embedder's. Raises SnapshotError."""
    try:
        if (pending := device.load(copied(state, device.name))) is not None:
            await pending
    except SnapshotError:
        raise
    except Exception as exc:
        raise SnapshotError(f"its load() failed: {exc!r}") from exc


async def suspend_all(functions: Iterable[PciFunction], limit: float = QUIESCE_LIMIT) -> None:
    """All side by side, but those that others need behind them. Raises SnapshotError for one that no snapshot can have,
    before any is suspended, and for one that has not ended what is with the host after `limit` seconds: they all can go on
    then."""
    functions = list(functions)
    for function in functions:
        if (why := function.why_not_saved) is not None:
            raise SnapshotError(f"{function.name} cannot be in a snapshot: {why}")
    with awake_budget(limit) as left:
        for last in (False, True):
            await _suspend([f for f in functions if f.suspended_last is last], left() or 0.0, limit)


async def _suspend(functions: list[PciFunction], left: float, limit: float) -> None:
    if not functions:
        return
    tasks = {asyncio.ensure_future(function.suspend()): function for function in functions}
    try:
        with suppress(TimeoutError):
            async with awake_timeout(left):
                await asyncio.wait(tasks)
        late = [task for task in tasks if not task.done()]
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    if late:
        names = ", ".join(sorted(tasks[task].name for task in late))
        raise SnapshotError(f"{names}: the host has not ended its requests for {limit:g} s; try again when it has")
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def unsuspend_all(functions: Iterable[PciFunction]) -> None:
    """In the opposite order. One that is still being suspended goes on as soon as it is, and nobody waits for it. What one raises
    does not keep the others from it."""
    errors: list[Exception] = []
    for function in sorted(functions, key=lambda function: not function.suspended_last):
        try:
            await function.unsuspend()
        except Exception as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
