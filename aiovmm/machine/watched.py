"""A VM as the watchdog sees it: whose code runs in a frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import FrameType

from aiovmm.bus import Range
from aiovmm.machine.ending import Ending
from aiovmm.runtime.watchdog import unwatch, watch
from aiovmm.virtqueue.runner import DeviceRunner

__all__ = ["WatchedVm", "watch_over"]


class WatchedVm:
    """See watchdog.Watched. `device_at` is called in the watchdog's thread, while the loop stands still."""

    def __init__(self, name: str, ending: Ending, loop_closed: Callable[[], None]) -> None:
        self.name = name
        self.device_slow = ending.device_slow
        self.loop_closed = loop_closed
        self._power = ending.power

    def device_at(self, frame: FrameType) -> str | None:
        """The id of a virtio device, by an object of its own in the frame, or the name of the range that is accessed."""
        here = frame.f_locals
        me, accessed = here.get("self"), here.get("rng")
        machine = self._power.machine
        if machine is not None and isinstance(accessed, Range) and accessed in machine.bus.ranges():
            return accessed.name
        return self.id_of(me.device if isinstance(me, DeviceRunner) else me)

    def id_of(self, device: object) -> str | None:
        """The id of a virtio device of this VM's."""
        return next((plugged.id for plugged in self._power.plugged if plugged.device is device), None)


def watch_over(name: str, ending: Ending, loop_closed: Callable[[], None]) -> Callable[[], None]:
    """Have the watchdog of the running loop look after the VM, until the result is called."""
    loop, vm = asyncio.get_running_loop(), WatchedVm(name, ending, loop_closed)
    watch(loop, vm)
    return partial(unwatch, loop, vm)
