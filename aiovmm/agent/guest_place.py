"""An agent in the guest of a VM of this program."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from aiovmm.agent.wire import AGENT_PORT
from aiovmm.runtime.event import Event

if TYPE_CHECKING:
    from aiovmm.agent.link import Link
    from aiovmm.lifecycle import ExitStatus
    from aiovmm.vm import VM

__all__ = ["GuestPlace"]

_TAIL = 8192  # bytes of what the guest printed last


class GuestPlace:
    """See place.Place. `stopped` is set when the guest has ended. Raises StateError if the VM has no vsock device."""

    hears_of_its_end = True

    def __init__(self, vm: VM, stopped: Event) -> None:
        self.name = f"VM {vm.name!r}"
        self._vm = vm
        self._vsock = vm.vsock
        self._stopped = stopped

    async def dial(self, protocol: Callable[[], Link]) -> Link:
        """See place.Place."""
        return await self._vsock.attach(AGENT_PORT, protocol)

    def stage(self) -> str:
        """See place.Place."""
        return "agent" if self._vsock.live else "driver"

    def console_tail(self) -> bytes:
        """See place.Place: of the serial port, or of hvc0 if that is where the guest has printed."""
        return (self._vm.serial.history or self._vm.console.history)[-_TAIL:]

    def status(self) -> ExitStatus | None:
        """See place.Place."""
        return self._vm.status

    def ended(self) -> Coroutine[Any, Any, object] | None:
        """See place.Place."""
        return self._stopped.wait()
