"""Where a front end finds its back end: at a socket that this listens at and we connect to, or, the other way round, at one of
ours (the reference's `vhost_mode=server`), where back ends come one after the other."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

from aiovmm.errors import HostError
from aiovmm.runtime.log import Log
from aiovmm.runtime.unix_listener import SocketName, listen_in_thread

__all__ = ["Doorstep"]

_ABSENT = "connecting to the vhost-user back end"


class Doorstep:
    """Ours, at `path`: there from `open` to `close`, also between one back end and the next."""

    def __init__(self, path: str | os.PathLike[str], option: str) -> None:
        self._path = Path(path)
        self._option = option
        self._listener: socket.socket | None = None
        self._name: SocketName | None = None

    async def open(self) -> None:
        """Listen, if that is not so yet. Raises HostError, ConfigError."""
        if self._listener is None:
            self._listener, self._name = await listen_in_thread(
                self._path, option=self._option, operation="listening for a vhost-user back end"
            )

    async def first(self, who: str) -> socket.socket:
        """The back end that comes, whenever it does; the log says what `who` waits for. Raises HostError."""
        assert self._listener is not None
        Log().warning(f"{who}: waits for its back end to connect to {self._path}")
        try:
            return (await asyncio.get_running_loop().sock_accept(self._listener))[0]
        except OSError as exc:
            raise HostError("accepting a vhost-user back end", exc.errno or 0, path=os.fspath(self._path)) from exc

    def next(self) -> socket.socket:
        """The one that has come already. Raises HostError if there is none."""
        try:
            if self._listener is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            sock, _ = self._listener.accept()
        except OSError as exc:
            raise HostError(_ABSENT, exc.errno or 0, "none has come", os.fspath(self._path)) from exc
        sock.setblocking(False)
        return sock

    async def close(self) -> None:
        """With its name, unless somebody else has that now. Idempotent."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        if self._name is not None:
            await self._name.removed()
