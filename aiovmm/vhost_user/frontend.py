"""A back end as a device sees it: found at its socket, reached again after it went away, its configuration space.

It outlives machines: a guest's reboot keeps the connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiovmm.errors import HostError, PeerError
from aiovmm.runtime.awake import awake_budget
from aiovmm.runtime.log import Log
from aiovmm.vhost_user.channel import ChannelClosed
from aiovmm.vhost_user.connection import ANSWER_TIMEOUT, Connection, connect
from aiovmm.vhost_user.doorstep import Doorstep
from aiovmm.vhost_user.protocol import ProtocolFeature
from aiovmm.vhost_user.sequences import Offer, read_config, set_mtu, write_config

__all__ = ["Frontend", "Timing"]

Place = tuple[int, int]  # offset and size in bytes of a write to the configuration space
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)  # the last: others wait there already
_PAUSE = 0.05  # seconds between two looks
_UNTOLD = 1.0  # seconds that a back end which is started at the same time may take, before anything is said


@dataclass(frozen=True)
class Timing:
    """Seconds: how long to look for a back end that is yet to be started, to wait for an answer, and to wait for a back end that
    went away under a live device."""

    connect: float = 60.0
    answer: float = ANSWER_TIMEOUT
    patience: float = 60.0


@dataclass
class Frontend:
    """See the module. `wanted`: protocol features to use where they are offered. `on_lost` hears of the end of a connection,
    `on_config` gets the configuration when it was read anew (`config_size` bytes; 0: this device's is not the back end's),
    `on_refused` what went wrong with an access to it. With a `doorstep` the back end comes to us, there, and `path` is not used;
    it is waited for as long as it takes, which is said of `who`."""

    path: str | os.PathLike[str]
    wanted: ProtocolFeature
    config_size: int = 0
    timing: Timing = field(default_factory=Timing)
    mtu: int | None = None  # to be told to the back end, where it wants to hear it
    doorstep: Doorstep | None = None
    who: str = ""
    on_lost: Callable[[PeerError], None] = lambda error: None
    on_config: Callable[[bytes], None] = lambda config: None
    on_refused: Callable[[Exception], None] = lambda error: None
    connection: Connection | None = None
    offer: Offer = field(default_factory=lambda: Offer(0, ProtocolFeature(0)))
    """What the first connection was offered: the guest has been promised it, so all later ones must offer no less."""

    _written: dict[Place, bytes] = field(default_factory=dict)  # what the driver has written to the configuration space
    _untold: dict[Place, bytes] = field(default_factory=dict)  # of that, what the back end has yet to hear
    _telling: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _order: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stale: bool = False  # the back end has said that its configuration changed

    async def open(self) -> None:
        """Find the back end, which is waited for, and negotiate. Raises HostError if nobody listens, PeerError."""
        self.connection = await (
            self._look(self.timing.connect) if self.doorstep is None else self._wait(self.doorstep)
        )
        self.offer = self.connection.offer
        if self.config_size and self.offer.protocol & ProtocolFeature.CONFIG:
            self.on_config(await self.connection.carry_out(read_config(self.config_size)))

    async def _look(self, patience: float) -> Connection:
        """Whoever starts the monitor first, or the back end again, is as right as who does not."""
        told = False
        with awake_budget(patience) as left:
            while True:
                try:
                    return await self._connect(connect(self.path))
                except (HostError, ChannelClosed) as exc:
                    absent = exc
                if isinstance(absent, HostError) and absent.errno not in _ABSENT:
                    raise absent
                if not (still := left()):
                    raise _not_there(absent, patience)
                if patience - still >= _UNTOLD and not told:
                    told = True
                    self._tell_that_it_waits(absent, patience)
                await asyncio.sleep(_PAUSE)

    def _tell_that_it_waits(self, absent: HostError | ChannelClosed, patience: float) -> None:
        why = os.strerror(absent.errno or 0) if isinstance(absent, HostError) else str(absent)
        Log().warning(f"{self.who}: waits for its back end at {os.fspath(self.path)}, for {patience:g} s: {why}")

    async def _wait(self, doorstep: Doorstep) -> Connection:
        await doorstep.open()
        return await self._connect(await doorstep.first(self.who))

    async def reopen(self) -> Connection:
        """One attempt to reach a back end again; it is told what the driver wrote. Raises HostError, ChannelClosed if it is
        not there yet, PeerError if it is another than it was."""
        if self.connection is not None:
            return self.connection
        connection = await self._connect(self.doorstep.next() if self.doorstep else connect(self.path))
        try:
            missing = self.offer.features & ~connection.offer.features
            if missing or connection.offer.protocol != self.offer.protocol:
                raise PeerError(f"the back end came back with other features (without {missing:#x})")
            self._untold = dict(self._written)
            await self._tell(connection)
            connection.check()  # see _connect
        except BaseException:
            await connection.close()
            raise
        self.connection = connection
        if self.config_size and self.offer.protocol & ProtocolFeature.CONFIG:
            self._config_changed()  # it may have changed while the back end was away
        return connection

    async def drop(self) -> None:
        """End the connection, as after a back end that does not do what it is told."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        """End everything. Idempotent. Nobody hears of anything any more."""
        self.on_lost = self.on_config = self.on_refused = _nobody
        if self.doorstep is not None:
            await self.doorstep.close()
        await self.drop()
        for task in list(self._tasks):
            task.cancel()
            await asyncio.wait([task])

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Pass a write of the driver on, who waits until the back end has it. None: there is nobody to wait for; one that comes
        back is told. However much is written there is one task, and one record of what each place holds."""
        place = offset, len(data)
        for writes in (self._written, self._untold):
            writes.pop(place, None)  # the last write is to be told last: it may overlap others
            writes[place] = data
        if self.connection is None:
            return None
        if self._telling is None:
            self._telling = self._spawn(self._write_config())
        return _ended(self._telling)

    def read_anew(self) -> Awaitable[None]:
        """Read the configuration space again; `on_config` gets it before the result is done."""
        return _ended(self._spawn(self._read_config()))

    def forget_config(self) -> None:
        """The driver has reset the device."""
        self._written.clear()
        self._untold.clear()

    async def _connect(self, sock: socket.socket) -> Connection:
        connection = await Connection.open(
            sock,
            self.wanted,
            on_lost=self._lost,
            on_config_change=self._config_changed,
            timeout=self.timing.answer,
        )
        try:
            if self.mtu is not None and connection.offer.protocol & ProtocolFeature.MTU:
                await connection.carry_out(set_mtu(self.mtu))
            connection.check()  # one that goes with its last answer: nobody hears of that as long as nobody has the connection
        except BaseException:
            await connection.close()
            raise
        return connection

    def _lost(self, connection: Connection, error: PeerError) -> None:
        if connection is self.connection:
            self.connection = None
            self.on_lost(error)

    def _config_changed(self) -> None:
        """However often the back end says so, there is one reading under way and at most one more to come."""
        if not self._stale:
            self._stale = True
            self._spawn(self._read_config())

    async def _read_config(self) -> None:
        async with self._order:
            self._stale = False
            if self.connection is not None and self.config_size:
                self.on_config(await self.connection.carry_out(read_config(self.config_size)))

    async def _write_config(self) -> None:
        try:
            async with self._order:
                if self.connection is not None:
                    await self._tell(self.connection)
        finally:
            self._telling = None

    async def _tell(self, connection: Connection) -> None:
        while self._untold:
            place, data = next(iter(self._untold.items()))
            del self._untold[place]
            await connection.carry_out(write_config(place[0], data))

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coro, name="vhost-user configuration")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, ChannelClosed):  # a loss is told by on_lost
            self.on_refused(error)


def _nobody(_what: object) -> None:
    """Hears of it."""


def _not_there(error: HostError | ChannelClosed, patience: float) -> Exception:
    if isinstance(error, ChannelClosed):
        return error
    hint = f"is the back end running? it was waited for {patience:g} s"
    return HostError(error.operation, error.errno or 0, hint, error.filename)


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for it, whatever comes of it; cancelled, let it go on."""
    await asyncio.wait([task])
