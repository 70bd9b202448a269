"""virtio-vsock (VIRTIO 1.2 §5.10): stream sockets between the guest and this program, or the programs at a unix socket."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from aiovmm.config import VsockConfig
from aiovmm.devices.virtio.vsock.counters import VsockCounters
from aiovmm.devices.virtio.vsock.hybrid import HybridSocket
from aiovmm.devices.virtio.vsock.muxer import FIRST_HOST_PORT, LAST_HOST_PORT, Muxer
from aiovmm.devices.virtio.vsock.rings import EVENT, Rings
from aiovmm.devices.virtio.vsock.streams import Vsock
from aiovmm.devices.virtio.vsock.switch import Switch
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue

__all__ = ["VsockDevice"]


class VsockDevice(VirtioDevice):
    """The guest's context id is `cid`. `streams` is the program's side. With `path`, a unix socket there speaks the hybrid
    protocol (see `hybrid`), and a guest's connection to port N goes to the unix socket `<path>_N` unless the program listens.

    `buffer`: bytes that a guest may have under way to each host end. `limit`: connections. `connect_timeout`: seconds that a
    client of the unix socket waits for its handshake and for the guest. `runs`: whether the guest does, which may be paused.
    """

    device_id = 19
    name = "vsock"
    features = 0  # stream sockets need none (§5.10.3)
    queue_sizes = (256, 256, 16)

    def __init__(
        self,
        cid: int,
        path: Path | None = None,
        *,
        buffer: int = 64 << 10,
        limit: int = 1024,
        connect_timeout: float = 5.0,
        runs: Callable[[], bool] = lambda: True,
    ) -> None:
        self.cid = cid
        self._switch = Switch(Muxer(cid, buffer=buffer, limit=limit))
        self.streams = Vsock(self._switch)
        self._hybrid = None if path is None else HybridSocket(self._switch, path, timeout=connect_timeout)
        self._rings: Rings | None = None
        self._runs = runs
        self._reset_due = False  # the guest is to be told that its connections are gone
        self._unheeded = 0  # see Rings: it has been told, and stands still since

    @classmethod
    def from_config(cls, config: VsockConfig, runs: Callable[[], bool] = lambda: True) -> VsockDevice:
        """Not open yet."""
        return cls(
            config.cid,
            config.socket,
            buffer=config.buffer_size,
            limit=config.max_connections,
            connect_timeout=config.connect_timeout,
            runs=runs,
        )

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._switch.muxer.connections)

    @property
    def counters(self) -> VsockCounters:
        """Since the device was made, over all resets."""
        muxer = self._switch.muxer
        return VsockCounters(len(muxer.connections), muxer.rx_bytes, muxer.tx_bytes)

    def read_config(self, offset: int, size: int) -> bytes:
        """struct virtio_vsock_config (§5.10.4): guest_cid, 64 bits."""
        return struct.pack("<Q", self.cid)[offset : offset + size].ljust(size, b"\0")

    async def open(self) -> None:
        """Listen at the unix socket. Raises HostError, ConfigError."""
        self.streams.open()
        self._switch.open()
        try:
            if self._hybrid is not None:
                await self._hybrid.open()
        except BaseException:
            self._switch.close()
            raise

    async def close(self) -> None:
        """End all connections and listeners. Idempotent."""
        self.streams.close()
        if self._hybrid is not None:
            await self._hybrid.close()
        await self._switch.end()
        self._switch.close()

    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve the guest. Listeners outlive it, connections only if it is to go on here."""
        self._rings = rings = Rings(queues, self._switch, self._runs, self._unheeded)
        self._switch.live.set()
        if self._reset_due:
            rings.transport_reset()
        try:
            await rings.serve()
        finally:
            self._rings = None
            self._reset_due, self._unheeded = rings.reset_due, rings.unheeded
            if not self.suspending:
                self.reset()

    def reset(self) -> None:
        """The driver has forgotten its connections."""
        self._reset_due, self._unheeded = False, 0
        self._switch.live.clear()
        self._switch.drop("the guest reset its vsock device")

    def save(self) -> State:
        """Connections are not in it, for their other ends stay here: the guest is told, where it goes on, that they are
        gone, and its context id there. That it has not heeded an earlier word of that is."""
        state: State = {"next_port": self._switch.muxer.next_port}
        return state | {"unheeded": self._unheeded} if self._unheeded else state

    def load(self, state: State) -> None:
        """New connections get ports that the guest has seen none of yet. Raises SnapshotError."""
        fields = Fields(state, self.name)
        port = fields.number("next_port", FIRST_HOST_PORT, LAST_HOST_PORT)
        unheeded = fields.number("unheeded", 1, self.queue_sizes[EVENT]) if "unheeded" in fields else 0
        fields.end()
        self._switch.muxer.next_port, self._unheeded, self._reset_due = port, unheeded, True

    def guest_ended(self, why: str) -> None:
        """Nobody waits for it any more: what it has sent is delivered, and then connections are at their end."""
        self.streams.end(why)
        if self._rings is not None:
            self._rings.take_last()
        self._switch.guest_gone(why)

    def transport_reset(self) -> None:
        """Drop all connections and tell the guest that they are gone and that its context id may have changed."""
        self._switch.drop("the connections were reset")
        if self._rings is not None:
            self._rings.transport_reset()
