"""An agent in a guest that is in a worker. Its vsock device is there; the connection is this process's, and costs the worker no
more than any other connection of the guest's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiovmm.agent.wire import AGENT_PORT
from aiovmm.errors import HostError, StateError
from aiovmm.pool.workers.plain import WorkerLost
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.event import Event
from aiovmm.runtime.stream_socket import join_socket

if TYPE_CHECKING:
    from aiovmm.agent.link import Link
    from aiovmm.lifecycle import ExitStatus
    from aiovmm.pool.workers.process import Worker
    from aiovmm.vm import VM

__all__ = ["RemotePlace"]

_TAIL = 8192  # bytes of what the guest printed last
_VERDICT = 1.0  # seconds


class RemotePlace:
    """See agent.place.Place. `number` is the guest's in `worker`."""

    hears_of_its_end = True

    def __init__(self, vm: VM, worker: Worker, number: int, stopped: Event) -> None:
        self.name = f"VM {vm.name!r}"
        self._vm = vm
        self._worker = worker
        self._number = number
        self._stopped = stopped
        self._has_driver = False  # its kernel has answered

    async def dial(self, protocol: Callable[[], Link]) -> Link:
        """See Place. The device's half of a pair goes to the worker."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            raise HostError("make a connection to the agent", exc.errno or 0, "raise the limit of open files") from exc
        try:
            with theirs:
                await self._worker.ask("dial", self._number, passing_on=theirs, port=AGENT_PORT)
        except BaseException as exc:
            ours.close()
            self._has_driver = self._has_driver or isinstance(exc, ConnectionError)
            if isinstance(exc, WorkerLost):
                raise StateError(exc.what) from exc  # which is how the guest has ended
            if isinstance(exc, StateError):
                await self._end_is_told()
            raise
        return await join_socket(ours, protocol)

    async def _end_is_told(self) -> None:
        """That the guest ends may be heard first from what was asked of it, and a moment later how."""
        with suppress(TimeoutError):
            async with awake_timeout(_VERDICT):
                await self._stopped.wait()

    def stage(self) -> str:
        """See Place."""
        return "agent" if self._has_driver else "driver"

    def console_tail(self) -> bytes:
        """See Place: of the serial port, or of hvc0 if that is where the guest has printed."""
        return (self._vm.serial.history or self._vm.console.history)[-_TAIL:]

    def status(self) -> ExitStatus | None:
        """See Place."""
        return self._vm.status

    def ended(self) -> Coroutine[Any, Any, object] | None:
        """See Place."""
        return self._stopped.wait()
