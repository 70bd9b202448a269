"""One front end's connection to a device that is served here: carries the pure state machine's effects out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from aiovmm.errors import AiovmmError, HostError, PeerError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.testing.vhost_user_backend_rings import Rings
from aiovmm.vhost_user import effects as e
from aiovmm.vhost_user.channel import Channel, ChannelClosed, close_fds
from aiovmm.vhost_user.inflight import InflightRecord
from aiovmm.vhost_user.lines import EventReader
from aiovmm.vhost_user.messages import Message
from aiovmm.vhost_user.payloads import ConfigSpace, Payload, Region, VringState, Word
from aiovmm.vhost_user.protocol import BackendRequest, Flag, FrontendRequest, ProtocolFeature
from aiovmm.vhost_user.server_state import ServerState
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.features import RING_FEATURES

__all__ = ["PROTOCOL_FEATURES", "Session"]

PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.STATUS
)
_RING_FDS = {
    FrontendRequest.SET_VRING_KICK: "kick",
    FrontendRequest.SET_VRING_CALL: "call",
    FrontendRequest.SET_VRING_ERR: "err",
}


class Session:
    """Serves `device` (open already) on a connected socket, which it owns, until the front end goes."""

    def __init__(
        self,
        device: VirtioDevice,
        sock: socket.socket,
        *,
        protocol: ProtocolFeature = PROTOCOL_FEATURES,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.device = device
        self.state = ServerState(device.features | RING_FEATURES, protocol, device.queue_sizes)
        self.rings = Rings(device, self.state, on_error)
        self._channel = Channel(sock, FrontendRequest)
        self._requests: Channel | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._on_error = on_error
        self._loss: EventReader | None = None
        self._lost: PeerError | None = None  # its memory is

    async def run(self) -> None:
        """Returns when the front end has closed the connection. Raises PeerError if it breaks the protocol, or its
        memory is not there any more."""
        self.device._notify_config = self._config_changed
        self.device._notify_error = self._on_error
        try:
            while True:
                message = await self._channel.receive()
                fds = list(message.fds)  # what an effect takes over is taken out
                try:
                    for effect in self.state.receive(message):
                        await self._carry_out(effect, message, fds)
                finally:
                    close_fds(fds)
        except ChannelClosed:
            if self._lost is not None:
                raise self._lost from None
        finally:
            await self._close()

    async def _close(self) -> None:
        self.device._notify_config = self.device._notify_error = None
        self._channel.close()
        if self._requests is not None:
            self._requests.close()
        for task in list(self._telling):
            task.cancel()
        await self.rings.close()
        if self._loss is not None:
            self._loss.close()
        self.device.reset()

    def _use_memory(self, memory: GuestMemory) -> None:
        """Take over new memory, and hear of its loss: whatever is read there then are zeros of ours."""
        if self._loss is None:
            self._loss = EventReader(self._memory_lost)
        for region in memory.regions:
            region.mapping.tell_loss(self._loss.fd)
        self.rings.use_memory(memory)

    def _memory_lost(self) -> None:
        self._lost = PeerError("the front end's memory is lost: its file was cut short, or could not be read or filled")
        self._channel.close()

    async def _carry_out(self, effect: e.Effect, message: Message, fds: list[int]) -> None:
        match effect:
            case e.Reply(payload):
                await self._reply(message, payload)
            case e.Acknowledge():
                await self._reply(message, Word(0))
            case e.MapMemory(regions):
                self._use_memory(_map(regions, fds))
            case e.RingFd(kind, index, _):
                await self._use_eventfd(kind, index, _eventfd(fds.pop()) if fds else -1)
            case e.UpdateRings():
                await self.rings.update()
            case e.ReportBase(index):
                self.rings.forget(index)
                await self._reply(message, VringState(index, self.state.rings[index].base))
            case e.ReadConfig(offset, size):
                await self._reply(message, ConfigSpace(offset, self.device.read_config(offset, size)))
            case e.WriteConfig(offset, data):
                await self._write_config(offset, data)
            case e.MakeInflight(queues, queue_size):
                await self._make_record(message, queues, queue_size)
            case e.MapInflight(area):
                self.rings.use_record(InflightRecord.map(area, fds[0]))
            case e.GiveBackChannel():
                self._take_channel(fds.pop())
            case e.ResetDevice():
                self.rings.forget_all()
                self.device.reset()

    async def _use_eventfd(self, kind: FrontendRequest, index: int, fd: int) -> None:
        """A kick is never closed while it is watched, as that of a ring that is not live yet may be: the front end's open file
        stays, and the event loop's selector would know it by a number that is another's. The rings are served anew behind it."""
        if kind is FrontendRequest.SET_VRING_KICK:
            try:
                await self.rings.halt()
            except BaseException:
                close_fds([fd])
                raise
        self.rings.fds[index].replace(_RING_FDS[kind], fd)

    async def _reply(self, message: Message, payload: Payload, fds: tuple[int, ...] = ()) -> None:
        await self._channel.send(Message(message.request, payload, fds, Flag.REPLY))

    async def _make_record(self, message: Message, queues: int, queue_size: int) -> None:
        area, fd = InflightRecord.create(queues, queue_size)
        try:
            await self._reply(message, area, (fd,))
        finally:
            close_fds([fd])

    async def _write_config(self, offset: int, data: bytes) -> None:
        try:
            pending = self.device.write_config(offset, data)
            if pending is not None:
                await pending
        except AiovmmError as exc:  # the driver's mistake, not the front end's
            self._on_error(exc)

    def _take_channel(self, fd: int) -> None:
        try:
            sock = socket.socket(fileno=fd)
        except OSError as exc:
            close_fds([fd])
            raise PeerError("SET_BACKEND_REQ_FD comes with something that is no socket") from exc
        if self._requests is not None:
            self._requests.close()
        self._requests = Channel(sock, BackendRequest)

    def _config_changed(self) -> None:
        if self._requests is not None and not self._telling:  # one that is under way tells of this change as well
            task = asyncio.get_running_loop().create_task(self._tell(self._requests), name="vhost-user config change")
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, channel: Channel) -> None:
        with contextlib.suppress(ChannelClosed):  # a front end that has gone need not know
            await channel.send(Message(BackendRequest.CONFIG_CHANGE))


def _map(regions: tuple[Region, ...], fds: list[int]) -> GuestMemory:
    """The front end's memory. Raises PeerError if a region is not as it says."""
    memory = GuestMemory()
    try:
        for region, fd in zip(regions, fds, strict=True):
            # Beyond the end of the file every access would be a SIGBUS.
            if os.fstat(fd).st_size < region.offset + region.size:
                raise PeerError(f"a memory region of {region.size} bytes at {region.offset} is longer than its file")
            memory.map_fd(region.gpa, region.size, fd, region.offset)
    except (UsageError, HostError) as exc:
        memory.close()
        raise PeerError(f"the memory table cannot be mapped: {exc}") from exc
    except PeerError:
        memory.close()
        raise
    return memory


def _eventfd(fd: int) -> int:
    """What a peer calls an eventfd: anything else could make a read or a write of it block. Raises PeerError."""
    if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
        close_fds([fd])
        raise PeerError("a ring is given something that is no eventfd")
    os.set_blocking(fd, False)
    return fd
