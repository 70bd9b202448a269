"""What a guest in a worker can be asked by name, each as VM has it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from aiovmm.errors import UsageError
from aiovmm.runtime.plain import Fields, Plain, State
from aiovmm.snapshot.configuration import to_state
from aiovmm.stats.plain import to_state as stats_to_state
from aiovmm.vm import VM

__all__ = ["ANSWERS", "seconds_of"]


async def _pause(vm: VM, _: Fields) -> None:
    await vm.pause()


async def _resume(vm: VM, _: Fields) -> None:
    await vm.resume()


async def _shutdown(vm: VM, _: Fields) -> None:
    vm.shutdown()


async def _kill(vm: VM, fields: Fields) -> None:
    await vm.kill(fields.text("detail"))


async def _set_limits(vm: VM, fields: Fields) -> None:
    vm.set_limits(**_limits(fields.state("limits")))


def _limits(state: State) -> dict[str, float | None]:
    return {name: float(value) if isinstance(value, str) else value for name, value in state.items()}


async def _remove(vm: VM, fields: Fields) -> Plain:
    await vm.remove(fields.text("device"), timeout=seconds_of(fields), force=fields.flag("force"))
    return {"config": to_state(vm.config)}


async def _resize(vm: VM, fields: Fields) -> Plain:
    sizes = {name: None if fields.absent(name) else fields.number(name) for name in ("cpus", "memory")}
    zone = None if fields.absent("zone") else fields.text("zone")
    await vm.resize(cpus=sizes["cpus"], memory=sizes["memory"], zone=zone, timeout=seconds_of(fields))
    return {"config": to_state(vm.config)}


async def _snapshot(vm: VM, fields: Fields) -> Plain:
    base = None if fields.absent("base") else fields.text("base")
    taken = await vm.snapshot(fields.text("path"), base=base, track=fields.flag("track"))
    return {"pages": taken.pages, "microseconds": int(taken.standstill * 1e6)}


async def _stats(vm: VM, _: Fields) -> Plain:
    return {"stats": stats_to_state(vm.stats())}


async def _memory(vm: VM, fields: Fields) -> Plain:
    """See machine.ram.Ram."""
    what = fields.text("what", among=("resident", "own", "reclaim", "both"))
    if what == "both":
        resident, own = await vm.memory.both()
        return {"bytes": resident, "own": own}
    return {"bytes": await getattr(vm.memory, what)(), "own": None}


def seconds_of(fields: Fields) -> float | None:
    """The time-out of a request: seconds, or None for ever. Raises UsageError."""
    value = fields.list("timeout", 1)[0]
    if value is not None and not isinstance(value, int | float):
        raise UsageError(f"{value!r} is no number of seconds")
    return value


ANSWERS: dict[str, Callable[[VM, Fields], Coroutine[Any, Any, Plain]]] = {
    "pause": _pause,
    "resume": _resume,
    "shutdown": _shutdown,
    "kill": _kill,
    "set_limits": _set_limits,
    "remove": _remove,
    "resize": _resize,
    "snapshot": _snapshot,
    "stats": _stats,
    "memory": _memory,
}
