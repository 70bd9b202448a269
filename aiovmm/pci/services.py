"""What PCI needs from the machine it is plugged into. vm.py gives it with KVM, `testing.RecordingServices` without."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aiovmm.bus import Bus, Space
from aiovmm.memory import AddressSpace
from aiovmm.runtime.dataclass import dataclass

if TYPE_CHECKING:
    import asyncio

__all__ = ["IntxCircuit", "IntxLine", "IoEventFd", "LineChange", "MsiLine", "PciServices", "Place"]


@dataclass()
class Place:
    """Where a function is, once it is plugged in."""

    segment: int = 0
    slot: int = 0

    @property
    def requester_id(self) -> int:
        """Bus, device and function as one number."""
        return self.slot << 3


class MsiLine(Protocol):
    """One message-signalled interrupt that others signal: an eventfd (irqfd) that is wired to a GSI, whose route holds address
    and data."""

    @property
    def fd(self) -> int | None:
        """The eventfd, for other processes and for native code to signal; None if the line has none."""

    @property
    def pending(self) -> bool:
        """Masked, and signalled through `fd` meanwhile."""

    def set(self, address: int, data: int, masked: bool) -> None:
        """Program the line. Masked: cut the eventfd off its GSI, so that signals stay in it until it is joined again.

        May take long; see PciServices.off_loop. Raises HostError.
        """

    def close(self) -> None:
        """Give GSI and eventfd back. Idempotent."""


class IntxCircuit(Protocol):
    """A pin that the host's kernel asserts by itself, and whose interrupts' ends it tells by itself. Both calls may take long,
    see PciServices.off_loop."""

    def connect(self, trigger: int, ended: int) -> None:
        """Assert the pin when eventfd `trigger` is signalled; signal eventfd `ended` when the guest has ended the interrupt, by
        which time the pin is released. Both stay the caller's. Raises HostError."""

    def disconnect(self) -> None:
        """No more; the pin is released. Idempotent. Raises HostError."""


class IntxLine(Protocol):
    """A pin of the interrupt controller for a function's INTA, perhaps shared with other functions: an irq.LevelLine."""

    @property
    def gsi(self) -> int:
        """The global system interrupt that it is, for the firmware's tables."""

    def set_level(self, asserted: bool) -> None:
        """Assert or release the pin. Idempotent."""

    def circuit(self) -> IntxCircuit | None:
        """The pin for the host's kernel alone, from now until `close`: `set_level` does nothing then. None: the interrupt
        controller cannot, or others are on the pin."""

    def close(self) -> None:
        """Release it and give it back. Idempotent."""


@dataclass(frozen=True)
class LineChange:
    """What `line` is to be: see MsiLine.set."""

    line: MsiLine
    address: int
    data: int
    masked: bool


class IoEventFd(Protocol):
    """A registered doorbell."""

    def close(self) -> None:
        """Take it off its address. Idempotent. May take long; see PciServices.off_loop."""


class PciServices(Protocol):
    """The machine's side of PCI."""

    @property
    def bus(self) -> Bus:
        """Where BAR regions and ECAM pages go."""

    @property
    def memory(self) -> AddressSpace:
        """Guest memory as a device without an IOMMU reaches it."""

    def message(self, address: int, data: int, place: Place) -> Callable[[], None]:
        """What sends this message of the function at `place` when it is called: at once, never blocking. Who drives no interrupt
        controller with it has made the guest's mistake, and the message is lost."""

    def msi_line(self, name: str, place: Place) -> MsiLine:
        """A new line of the function at `place`, masked, for others to signal; `name` is for logs. Raises HostError."""

    def intx_line(self, ended: Callable[[], None], place: Place) -> IntxLine:
        """A pin for the function at `place`, released. `ended()`: the guest has ended its interrupt while it was asserted, and it
        has been released."""

    def ioeventfd(self, space: Space, address: int, size: int, fd: int) -> IoEventFd | None:
        """Signal `fd` on guest writes of `size` bytes (0: of any) to `address`, without an exit.

        None, if the machine cannot, or has as many as it can: such writes then reach the device through the bus.
        May take long, see `off_loop`. Never raises.
        """

    def set_lines(self, changes: Sequence[LineChange]) -> None:
        """Program lines, all together. May take long, see `off_loop`. Raises HostError."""

    def off_loop(
        self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None = None
    ) -> Awaitable[None] | None:
        """Call `work`, whose calls into the host may take milliseconds, where the event loop does not wait for it, after what
        was asked for before; then `then` on the loop, with what it raised.

        The result is done after that, and is what the guest's access should wait for; None: all is done. Nobody need wait for
        it, and to cancel it changes nothing. `work` may use lines, doorbells and memory slots, and touch nothing else that the
        loop's thread touches.
        """

    def create_task(self, coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run `coro` in the VM's task group."""
