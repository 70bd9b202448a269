"""The back-end side of vhost-user: any VirtioDevice, served to a monitor in another process.

    async with VhostUserServer(MyDevice(), "/run/my.sock"):
        await asyncio.Event().wait()

The device is the same class that a VM plugs in itself. The monitor may be aiovmm (`vhost_user=on,socket=...`) or another that
speaks vhost-user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiovmm.errors import AiovmmError, HostError
from aiovmm.runtime.stream_socket import connected_to
from aiovmm.testing.vhost_user_backend_session import PROTOCOL_FEATURES, Session
from aiovmm.vhost_user.protocol import ProtocolFeature
from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["PROTOCOL_FEATURES", "Session", "VhostUserServer"]

_AGAIN = 0.05  # seconds, between looks for a front end that does not listen yet


class VhostUserServer:
    """Opens `device`, listens at `path` (replaced if a dead socket lies there) and serves one front end after the other; or
    `connects` to where one listens (`vhost_mode=server`), as soon as it does, and again when it has gone.

    `protocol`: the protocol features to offer. `on_error(exc)` hears of devices that break and front ends that break the
    protocol; neither ends the server. Entering raises HostError.
    """

    def __init__(
        self,
        device: VirtioDevice,
        path: str | os.PathLike[str],
        *,
        protocol: ProtocolFeature = PROTOCOL_FEATURES,
        on_error: Callable[[Exception], None] = lambda error: None,
        connects: bool = False,
    ) -> None:
        self.device = device
        self.path = os.fspath(path)
        self.session: Session | None = None
        """Of the front end that is there now."""
        self._protocol = protocol
        self._on_error = on_error
        self._connects = connects
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.device.open()
        try:
            self._listener = None if self._connects else self._listen()
        except BaseException:
            await self.device.close()
            raise
        self._task = asyncio.get_running_loop().create_task(self._serve(self._listener), name="vhost-user server")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):  # somebody else has tidied up
                os.unlink(self.path)
        await self.device.close()

    def _listen(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            sock.bind(self.path)
            sock.listen(1)
        except OSError as exc:
            sock.close()
            raise HostError("listening for a vhost-user front end", exc.errno or 0, path=self.path) from exc
        return sock

    async def _connect(self) -> socket.socket:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                return connected_to(self.path)
            await asyncio.sleep(_AGAIN)

    async def _serve(self, listener: socket.socket | None) -> None:
        while True:
            sock = await (self._connect() if listener is None else _accept(listener))
            self.session = Session(self.device, sock, protocol=self._protocol, on_error=self._on_error)
            try:
                await self.session.run()
            except (AiovmmError, OSError) as exc:  # that front end's end, not ours
                self._on_error(exc)
            finally:
                self.session = None


async def _accept(listener: socket.socket) -> socket.socket:
    return (await asyncio.get_running_loop().sock_accept(listener))[0]
