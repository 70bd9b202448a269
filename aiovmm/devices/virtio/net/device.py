"""virtio-net (VIRTIO 1.2 §5.1): a network card with one or several queue pairs on a back end of the host.

Queue 2i receives and 2i+1 transmits for pair i; the control queue comes after the last pair, or after the first where the
driver knows no multiqueue (§5.1.2). Every queue is a coroutine; the control queue's commands start and end those of pairs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiovmm.config import RateLimit
from aiovmm.devices.limits import Limiter
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.config_space import ANNOUNCE, LINK_UP, NetConfigSpace
from aiovmm.devices.virtio.net.control import (
    ACK_ERR,
    ACK_OK,
    COMMAND_LIMIT,
    AnnounceAck,
    SetOffloads,
    SetPairs,
    parse_command,
)
from aiovmm.devices.virtio.net.counters import NetCounters
from aiovmm.devices.virtio.net.mac import random_mac
from aiovmm.devices.virtio.net.pairs import ActivePairs
from aiovmm.devices.virtio.net.port import Port
from aiovmm.errors import ConfigError, PeerError, SnapshotError
from aiovmm.runtime.dataclass import dataclass, replace
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue

__all__ = ["NetDevice"]

_CONTROL_SIZE = 64
# Seconds after each command, for each pair that it has switched: switching queues and offloads takes the host's RTNL lock and a
# grace period of its kernel, so a guest that did nothing else could hold up the loop, and the host's other network configuration.
_COMMAND_PAUSE = 0.001
_MAX_PAIRS = 0x8000  # §5.1.4.1


@dataclass(frozen=True)
class _Chosen:
    """What the driver has set by commands: pairs in use, offloads that it takes (as feature bits)."""

    pairs: int = 1
    offloads: int = 0


class NetDevice(VirtioDevice):
    """A network card. `mac` is 6 bytes (None: a random, locally administered one); `offloads` limits what is offered. With
    `only_from` the guest sends from its MAC address alone, and from these IP addresses or networks, if there are any.

    Raises ConfigError if `mac` is no card's address, `only_from` has what is no address, or too many, or the back end has more
    pairs than there can be.
    """

    device_id = 1
    _opens_slowly = True

    def __init__(
        self,
        backend: NetBackend,
        *,
        mac: bytes | None = None,
        queue_size: int = 256,
        offloads: f.Offloads = f.ALL_OFFLOADS,
        name: str = "net",
        rate_limit: RateLimit | None = None,
        only_from: Sequence[str] | None = None,
    ) -> None:
        self.mac = random_mac() if mac is None else mac
        if len(self.mac) != 6:
            raise ConfigError("net.mac", f"{self.mac.hex(':')} is no address: it has not six bytes")
        if not 1 <= backend.pairs <= _MAX_PAIRS:
            raise ConfigError("net.num_queues", f"{backend.pairs} queue pairs cannot be")
        self.name = name
        self._home = HomeLoop(f"network device {name!r}")
        self.backend = backend
        self.queue_sizes = (queue_size,) * (2 * backend.pairs) + (_CONTROL_SIZE,)
        self._queue_size = queue_size
        self._offloads = offloads
        self._own = None if only_from is None else _own(self.mac, only_from)
        self._link = True
        self._limiters = (Limiter(rate_limit), Limiter(rate_limit))
        self._ended: OSError | None = None
        self._negotiated = 0
        self._chosen = _Chosen()
        self._elsewhere = False  # it goes on where no switch knows it yet
        self._past = NetCounters()
        self._space = NetConfigSpace(self.mac)
        self._pairs: ActivePairs | None = None
        self._describe()

    def _describe(self) -> None:
        """Take over what the back end knows of itself; after `open` it knows more than before."""
        backend = self.backend
        self._space.max_virtqueue_pairs = backend.pairs
        self._space.mtu = min(backend.mtu or 0, 0xFFFF)
        self.features = f.offered(
            pairs=backend.pairs,
            queue_size=self._queue_size,
            mtu=backend.mtu is not None,
            vnet_hdr=backend.vnet_hdr,
            uso=backend.uso,
            offloads=self._offloads,
        )

    # -- what users see --------------------------------------------------------------------------------------------------

    @property
    def link(self) -> bool:
        """Whether the cable is plugged, and there is something at its other end. Settable at any time, on the
        event loop's thread."""
        return self._link and self._ended is None

    @link.setter
    def link(self, up: bool) -> None:
        self._home.check_thread()
        self._link = up
        self._show_link()

    @property
    def ended(self) -> OSError | None:
        """Why the other end is gone for good (its socket was closed, the TAP removed), or None."""
        return self._ended

    def announce(self) -> None:
        """Have the driver tell the network where it is (gratuitous ARP), as after a migration or a fork (§5.1.6.5.4)."""
        self._home.check_thread()
        if self._negotiated & f.GUEST_ANNOUNCE and self.link:
            self._space.status |= ANNOUNCE
            self.config_changed()

    @property
    def rate_limit(self) -> RateLimit | None:
        """What it may receive, and what it may send besides, in a time, over all queue pairs. Settable at any time, on the event
        loop's thread."""
        return self._limiters[0].limit

    @rate_limit.setter
    def rate_limit(self, limit: RateLimit | None) -> None:
        self._home.check_thread()
        for limiter in self._limiters:
            limiter.set(limit)

    @property
    def mtu(self) -> int | None:
        """What the driver is told, in bytes."""
        return self._space.mtu or None

    @property
    def active_pairs(self) -> int:
        """Queue pairs that the driver uses now; 0 without a driver."""
        return self._pairs.count if self._pairs is not None else 0

    @property
    def counters(self) -> NetCounters:
        """All that went through."""
        return sum((port.counters for port in self.backend.ports), self._past)

    # -- the device ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the back end. Raises HostError, ConfigError."""
        self._home.check()
        self.backend.on_error = self.report
        await self.backend.open()
        self._describe()
        self._show_link()

    async def close(self) -> None:
        """Close it."""
        self._past = self.counters
        await self.backend.close()
        self.backend.on_error = NetBackend.on_error

    def accepts(self, features: int) -> bool:
        """Whether each bit has what it requires (§5.1.3.1)."""
        return f.consistent(features)

    def read_config(self, offset: int, size: int) -> bytes:
        """§5.1.4."""
        return self._space.read(offset, size)

    def reset(self) -> None:
        """Forget what the driver had chosen."""
        self._negotiated = 0
        self._chosen = _Chosen()
        self._space.status &= ~ANNOUNCE

    def save(self) -> State:
        """What the driver has set by commands, and the status that it was told. Packets that are on their way are lost, as on any
        network; the address is the configuration's."""
        return {
            "features": self._negotiated,
            "pairs": self._chosen.pairs,
            "offloads": self._chosen.offloads,
            "status": self._space.status,
        }

    def load(self, state: State) -> None:
        """Raises SnapshotError. The driver is told of a link that is another now, and to announce itself on it."""
        fields = Fields(state, self.name)
        features, status = fields.number("features", 0, (1 << 128) - 1), fields.number("status", 0, LINK_UP | ANNOUNCE)
        chosen = _Chosen(fields.number("pairs", 1, self.backend.pairs), fields.number("offloads") & f.OFFLOADS)
        fields.end()
        if not f.consistent(features) or not f.consistent(chosen.offloads):
            raise SnapshotError(f"{self.name}: no driver takes the offloads {chosen.offloads:#x} of {features:#x}")
        self._check(chosen, features)
        self._negotiated, self._chosen, self._space.status = features, chosen, status
        self._elsewhere = True

    def _check(self, chosen: _Chosen, features: int) -> None:
        """Raises SnapshotError for what no driver with these features can have set."""
        if chosen.offloads & ~features:
            raise SnapshotError(f"{self.name}: no driver takes the offloads {chosen.offloads:#x} of {features:#x}")
        if chosen.pairs > 1 and not features & f.MQ:
            raise SnapshotError(
                f"{self.name}: no driver uses {chosen.pairs} queue pairs with the features {features:#x}"
            )

    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve all queues. What is not asynchronous ends at once, so nothing is in flight when it is cancelled."""
        self._negotiated = features
        if not self.resumed:
            self._chosen = _Chosen(1, features & f.OFFLOADS)
        self._check(self._chosen, features)  # what was loaded had features of its own
        if self._ended is None:
            self._set_offloads(self._chosen.offloads)
        self._show_link()
        if self._own is not None:
            for port in self.backend.ports:
                port.send_only_from(self._own)
        control = queues[len(queues) - 1 if features & f.MQ else 2]
        try:
            async with asyncio.TaskGroup() as group:
                self._pairs = ActivePairs(self.backend, queues, group, self._port_ended, self._limiters)
                await self._pairs.begin(features, self._chosen.pairs, fresh=not self.resumed)
                if self._elsewhere:
                    self._elsewhere = False
                    self.announce()
                if features & f.CTRL_VQ:
                    await self._control(control, self._pairs)
        finally:
            if self._pairs is not None:
                self._pairs.close()
                self._pairs = None

    async def _control(self, queue: Queue, pairs: ActivePairs) -> None:
        async for chain in queue:
            before = pairs.count
            ok = await self._command(chain.read_all(COMMAND_LIMIT), pairs)
            chain.write(ACK_OK if ok else ACK_ERR)
            queue.push(chain)
            queue.flush()
            del chain  # it would hold guest memory while this waits, and longer: a cancelled group of tasks is a cycle
            await asyncio.sleep(_COMMAND_PAUSE * max(1, abs(pairs.count - before)))

    async def _command(self, data: bytes, pairs: ActivePairs) -> bool:
        """Carry out a command; whether it was legal and the host went along (§5.1.6.5)."""
        command = parse_command(data)
        try:
            match command:
                case SetPairs(count) if self._negotiated & f.MQ and 1 <= count <= self.backend.pairs:
                    await pairs.set_count(count)
                    self._chosen = replace(self._chosen, pairs=count)
                case SetOffloads(bits) if self._may_set(bits):
                    self._set_offloads(bits)
                case AnnounceAck() if self._negotiated & f.GUEST_ANNOUNCE:
                    self._space.status &= ~ANNOUNCE
                case _:
                    return False
        except OSError:
            return False
        return True

    def _may_set(self, bits: int) -> bool:
        allowed = self._negotiated & f.OFFLOADS
        return bool(self._negotiated & f.CTRL_GUEST_OFFLOADS) and not bits & ~allowed and f.consistent(bits)

    def _set_offloads(self, bits: int) -> None:
        """The back end first, which may refuse."""
        self.backend.set_offloads(bits)
        for port in self.backend.ports:
            port.set_offloads(bits)
        self._chosen = replace(self._chosen, offloads=bits)

    def _port_ended(self, port: Port, error: OSError) -> None:
        if self._ended is None:
            self._ended = error
            self._show_link()
            why = f": {error.strerror}" if error.errno else ""
            self.report(PeerError(f"the other end of {self.name} is gone{why}; the guest's link is down from now on"))

    def _show_link(self) -> None:
        up = self.link
        for port in self.backend.ports:
            port.set_link(up)
        if self._ended is None and self.backend.ports:
            self.backend.set_carrier(up)
        status = self._space.status & ~LINK_UP | (LINK_UP if up else 0)
        if status != self._space.status:
            self._space.status = status
            self.config_changed()


def _own(mac: bytes, addresses: Sequence[str]) -> Any:
    from aiovmm.devices.virtio.net.own import own_addresses  # by whom it is asked for

    return own_addresses(mac, addresses)
