"""A device of the embedder's own that is not virtio: registers at ports, or at addresses in memory."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from aiovmm.bus import Space
from aiovmm.errors import ConfigError, SnapshotError, StateError

if TYPE_CHECKING:
    from aiovmm.runtime.plain import State

__all__ = ["PortDevice", "check_ports", "is_int"]

_LIMIT = {Space.PIO: 1 << 16, Space.MMIO: 1 << 52}


class PortDevice:
    """`size` registers of a byte from `base` on, in `space`. The object outlives the guest's reboots; `reset` comes before each
    life. What a method raises is a DEVICE_ERROR event of `name`; the guest then reads ones, or its write is lost.

        class DebugExit(PortDevice):
            base, size, name = 0xF4, 4, "debug-exit"

            def write(self, offset: int, data: bytes) -> None:
                self.code = int.from_bytes(data, "little")
                self.end(f"debug exit with {self.code}")
    """

    space: ClassVar[Space] = Space.PIO
    base: int
    size: int = 1
    name: str = "port"

    _end: Callable[[str], None] | None = None  # set by the machine
    _vm: str = ""  # the name of the VM that has it

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes (1, 2, 4 or 8) at `offset` from `base`, little-endian. A vCPU waits: answer at once."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """The guest writes. If an awaitable is returned, its instruction completes when that is done."""
        return None

    def reset(self) -> None:
        """The guest is about to run from its first instruction."""

    def save(self) -> State | Awaitable[State]:
        """For a snapshot: what the guest can tell it by, as plain data (`aiovmm.runtime.plain`). The guest stands still. May be
        `async def`. A device that remembers nothing says so by `return {}`. Raises SnapshotError."""
        raise SnapshotError(f"{self.name} has no save() and load(), so no snapshot can have it")

    def load(self, state: State) -> Awaitable[None] | None:
        """Become what `save` told of; comes behind `reset`. The state is input. May be `async def`. Raises SnapshotError."""
        raise SnapshotError(f"{self.name} has no save() and load(), so no snapshot can have it")

    @property
    def why_not_saved(self) -> str | None:
        """Why no snapshot can have it; None if one can."""
        if type(self).save is PortDevice.save or type(self).load is PortDevice.load:
            return "it has no save() and load()"
        return None

    def end(self, detail: str) -> None:
        """Power the guest off: it ends with ExitReason.SHUTDOWN and this detail, and runs no further instruction."""
        if self._end is None:
            raise StateError(f"{self.name} is in no machine")
        self._end(detail)


def check_ports(ports: Any) -> tuple[PortDevice, ...]:
    """Those, if they can be plugged. Raises ConfigError."""
    if not isinstance(ports, Iterable):
        raise ConfigError("ports", f"{ports!r} is no list", "ports=[...]")
    checked: list[PortDevice] = []
    for number, port in enumerate(ports):
        option = f"ports[{number}]"
        if isinstance(port, type) or not isinstance(port, PortDevice):
            raise ConfigError(option, f"{port!r} is no PortDevice", "give an object of a class derived from PortDevice")
        if any(port is other for other in checked):
            raise ConfigError(option, f"{port.name} is plugged twice", "make an object for each place")
        base: Any = getattr(port, "base", None)
        if not is_int(base) or not is_int(port.size) or base < 0 or port.size < 1:
            raise ConfigError(option, f"{port.name} has no place", "set base, and size, to numbers")
        if not isinstance(port.space, Space):
            raise ConfigError(f"{option}.space", f"{port.space!r} is no Space", "Space.PIO, or Space.MMIO")
        if inspect.iscoroutinefunction(port.read):
            raise ConfigError(f"{option}.read", f"{port.name} has a coroutine", "write `def read(self, offset, size)`")
        if base + port.size > _LIMIT[port.space]:
            raise ConfigError(option, f"{port.name} ends at {base + port.size:#x}, beyond the addresses there are")
        checked.append(port)
    return tuple(checked)


def is_int(value: object) -> bool:
    """A whole number, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)
