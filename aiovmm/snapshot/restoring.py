"""VMs that go on where another one stood."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aiovmm.architecture import host
from aiovmm.config import VMConfig
from aiovmm.errors import SnapshotError
from aiovmm.machine.restored import Restored
from aiovmm.runtime.plain import State
from aiovmm.runtime.tasks import in_thread
from aiovmm.snapshot.base import Base
from aiovmm.snapshot.configuration import changed, from_state
from aiovmm.snapshot.directory import Opened, open_snapshot
from aiovmm.snapshot.pages import Kept, sum_up

if TYPE_CHECKING:
    from aiovmm.devices.port import PortDevice
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["check_architecture", "going_on", "restored"]

V = TypeVar("V", bound="VM")


def check_architecture(state: State) -> None:
    """Raises SnapshotError for a guest of another one."""
    there, here = state["architecture"], host().name
    if there != here:
        raise SnapshotError(f"it is of a guest for {there}, and this host is {here}")


@asynccontextmanager
async def restored(
    cls: type[V],
    path: Path,
    *,
    name: str | None,
    overrides: Mapping[str, Any],
    devices: Sequence[VirtioDevice],
    ports: Sequence[PortDevice],
    prefault: bool,
    verify: bool,
) -> AsyncIterator[V]:
    """See VM.restore."""
    label = name or "restored"
    opened = await in_thread(f"{label}: open snapshot", open_snapshot, path)
    base = Base(opened.memory)
    try:
        check_architecture(opened.state)
        config = from_state(opened.state["config"])
        config = changed(config, {**({} if name is None else {"name": name}), **overrides})
        if verify:
            await in_thread(f"{label}: verify snapshot", _verify, path, opened, base)
        source = Restored(opened.state["machine"], partial(base.map, prefault=prefault))
        vm = going_on(cls, config, source, devices, ports)
        async with vm:
            yield vm
    finally:
        base.release()


def going_on(
    cls: type[V],
    config: VMConfig,
    source: Restored,
    devices: Sequence[VirtioDevice] = (),
    ports: Sequence[PortDevice] = (),
) -> V:
    """A VM that stands, paused, where `source` was saved, once it is entered."""
    vm = cls(config, devices=devices, ports=ports, terminal=False)
    vm._power.restored = source
    return vm


def _verify(path: Path, opened: Opened, base: Base) -> None:
    config = from_state(opened.state["config"])
    memory = base.map([(0, config.memory.size)])
    try:
        found = sum_up(memory)
    finally:
        memory.close()
    if found != Kept(opened.pages, opened.sum):
        raise SnapshotError(
            f"{path}: its memory is not what was saved: {found.pages} pages, and {opened.pages} were; or damaged"
        )
