"""What serves a device's queues from another process, between DRIVER_OK and reset: a virtqueue.backend.VirtioBackend.

    idle --activate--> live --the back end goes--> away --it is back and knows all again--> live
      ^                 |                           |
      |                 +--it breaks a rule--+      +--it does not come back, or nobody knows what was in flight
      |                                      v      v
      +---------------reset----------------- broken (NEEDS_RESET)

The loop is not in the data path: the guest's doorbells and interrupts are handed over as eventfds. While the back end is away
kicks stay in their eventfds and the guest's requests wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
from collections.abc import Callable, Sequence

from aiovmm.errors import HostError, PeerError, StateError
from aiovmm.irq import IrqLine
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.runtime.awake import awake_budget
from aiovmm.vhost_user.channel import ChannelClosed, close_fds
from aiovmm.vhost_user.connection import Connection
from aiovmm.vhost_user.frontend import Frontend
from aiovmm.vhost_user.lines import EventReader, call_fd
from aiovmm.vhost_user.memory_table import ring_address, shared_regions, wire_region
from aiovmm.vhost_user.messages import Message
from aiovmm.vhost_user.payloads import VringState
from aiovmm.vhost_user.protocol import FrontendRequest, ProtocolFeature
from aiovmm.vhost_user.retry import RetryPolicy
from aiovmm.vhost_user.sequences import Live, Ring, get_record, start, stop
from aiovmm.vhost_user.sequences import Sequence as Steps
from aiovmm.virtqueue.config import QueueConfig

__all__ = ["Resume", "VhostUserBackend"]


class Resume(enum.Enum):
    """How a device goes on when its back end died and kept no record of what was in flight."""

    IF_IDLE = "if idle"
    """Only if nothing was: to repeat a request that was done, or forget one that was not, would lose data (a disk)."""

    IN_ORDER = "in order"
    """From the used index: requests are done in order, and what is lost is lost as on a wire (a network)."""

    NEVER = "never"
    """The back end's own state died with it (a file system's session)."""


class VhostUserBackend:
    """One device on one machine's memory. `broken(exc)` is called once if it cannot go on; `on_reset()` when it was reset;
    `away(exc)` whenever the back end is gone and looked for again.
    Raises UsageError if the memory cannot be shared."""

    def __init__(
        self,
        frontend: Frontend,
        memory: GuestMemory,
        broken: Callable[[Exception], None],
        *,
        resume: Resume = Resume.IF_IDLE,
        on_reset: Callable[[], None] = lambda: None,
        away: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.losses = 0  # how often the back end went away under the live device
        self._frontend = frontend
        self._memory = memory
        self._broken = broken
        self._resume = resume
        self._on_reset = on_reset
        self._away = away
        self._live: Live | None = None
        self._failed = False  # said so, once an activation
        self._activating = False
        self._told = False  # some back end has been given these rings
        self._readers: list[EventReader] = []
        self._recovery: asyncio.Task[None] | None = None
        self._retry = RetryPolicy(frontend.timing.patience)
        shared_regions(memory)

    @property
    def connected(self) -> bool:
        """Whether a back end is there and serves the rings."""
        return self._live is not None and self._recovery is None and self._frontend.connection is not None

    @property
    def reachable(self) -> bool:
        """Whether there is a connection."""
        return self._frontend.connection is not None

    async def activate(
        self,
        configs: Sequence[QueueConfig],
        features: int,
        kick_fds: Sequence[int],
        queue_irqs: Sequence[IrqLine],
        config_irq: IrqLine,
        enabled: frozenset[int] | None = None,
    ) -> None:
        """DRIVER_OK: the back end takes the rings over (of them, `enabled` at once; None: all that are ready). If it is away
        just now the device stalls. Raises ChainError or GuestFault for rings that cannot be used, PeerError, HostError."""
        if self._live is not None:
            raise StateError("the vhost-user device is active already")
        self._frontend.on_lost = self._lost
        self._retry = RetryPolicy(self._frontend.timing.patience)
        self._told = self._failed = False
        features &= self._frontend.offer.features  # some bits are between the driver and us (a MAC, a control queue)
        live = self._live = self._describe(configs, features, kick_fds, queue_irqs, enabled)
        if self._frontend.connection is None:
            self._lost(ChannelClosed("it is away"))
            return
        self._activating = True
        try:
            await self._start(self._frontend.connection, live)
        except ChannelClosed:  # it is being looked for again
            return
        except BaseException:
            self._failed = True
            raise
        finally:
            self._activating = False

    async def reset(self) -> None:
        """Stop; when it returns the back end has let go of the rings, or its connection has been ended. Idempotent."""
        live, self._live = self._live, None
        recovery, self._recovery = self._recovery, None
        if recovery is not None:
            recovery.cancel()
            await asyncio.wait([recovery])
        connection = self._frontend.connection
        if live is not None and connection is not None and self._told:
            try:
                await connection.carry_out(stop(live, connection.offer))
            except PeerError:  # whatever it does now, it does no more as our back end
                await self._frontend.drop()
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        if live is not None:
            if live.record is not None:
                close_fds([live.record.fd])
            self._frontend.forget_config()
            self._on_reset()

    async def enable(self, indexes: frozenset[int]) -> None:
        """Have exactly these rings enabled from now on. Raises PeerError; one that is away is told when it is back."""
        live, connection = self._live, self._frontend.connection
        if live is None:
            raise StateError("the vhost-user device is not active")
        changed = live.enabled ^ indexes
        self._live = dataclasses.replace(live, enabled=indexes)
        if connection is not None and connection.offer.has_protocol and self._recovery is None:
            with contextlib.suppress(ChannelClosed):
                await connection.carry_out(_enable(sorted(changed), indexes))

    # -- what the back end is told -------------------------------------------------------------------------------------

    def _describe(
        self,
        configs: Sequence[QueueConfig],
        features: int,
        kick_fds: Sequence[int],
        queue_irqs: Sequence[IrqLine],
        enabled: frozenset[int] | None,
    ) -> Live:
        regions = shared_regions(self._memory)
        rings = []
        for index, config in enumerate(configs):
            if not config.ready:
                continue
            config.check()
            desc, avail, used = (ring_address(regions, address, size) for address, size in config.parts)
            call = call_fd(queue_irqs[index], self._readers)
            err = EventReader(lambda i=index: self._ring_broken(i))  # type: ignore[misc]
            self._readers.append(err)
            rings.append(Ring(index, config.size, desc, avail, used, 0, kick_fds[index], call, err.fd))
        return Live(
            features,
            tuple(wire_region(r) for r in regions),
            tuple(r.fd for r in regions),
            tuple(rings),
            frozenset(r.index for r in rings) if enabled is None else enabled,
        )

    async def _start(self, connection: Connection, live: Live) -> None:
        """For the first time, or with what the rings say now."""
        if self._told:
            live = self._resumed(live)
        elif connection.offer.protocol & ProtocolFeature.INFLIGHT_SHMFD and live.rings:
            largest = max(r.size for r in live.rings)
            count = max(r.index for r in live.rings) + 1
            record = await connection.carry_out(get_record(count, largest))
            live = self._live = dataclasses.replace(live, record=record)
        again, self._told = self._told, True
        await connection.carry_out(start(live, connection.offer))
        self._retry.connected(asyncio.get_running_loop().time())
        if again:
            for ring in live.rings:  # the kick or the interrupt that its predecessor swallowed
                for fd in (ring.kick, ring.call):
                    if fd is not None:
                        lib.avmm_event_signal(fd)  # which waits for nothing: the fds are the back end's as well
        await self._catch_up(connection, live)

    async def _catch_up(self, connection: Connection, told: Live) -> None:
        """The driver may have had other rings enabled while the back end was told all."""
        while (live := self._live) is not None and live.enabled != told.enabled and connection.offer.has_protocol:
            await connection.carry_out(_enable(sorted(live.enabled ^ told.enabled), live.enabled))
            told = live

    def _resumed(self, live: Live) -> Live:
        """Rings from where they stand. Raises PeerError if that cannot be known."""
        if self._resume is Resume.NEVER:
            raise PeerError("the back end went away, and the state of its session with it")
        rings = []
        for ring in live.rings:
            used = lib.avmm_load16(ring.used + 2)
            waiting = (lib.avmm_load16(ring.avail + 2) - used) & 0xFFFF
            if waiting and live.record is None and self._resume is Resume.IF_IDLE:
                raise PeerError(
                    f"the back end went away with up to {waiting} requests in flight and keeps no record of them "
                    "(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD): to repeat them could write old data"
                )
            # with a record the back end counts what is in flight on top of the used index
            rings.append(dataclasses.replace(ring, base=used))
        return dataclasses.replace(live, rings=tuple(rings))

    # -- when it goes --------------------------------------------------------------------------------------------------

    def _ring_broken(self, index: int) -> None:
        self._fail(PeerError(f"the back end says that ring {index} is broken"))

    def _fail(self, error: Exception) -> None:
        if self._live is not None and not self._failed:
            self._failed = True
            self._broken(error)

    def _lost(self, error: PeerError) -> None:
        if self._live is None or self._failed:
            return
        if not isinstance(error, ChannelClosed):
            if not self._activating:  # else `activate` raises it
                self._fail(error)
            return
        self.losses += 1
        self._away(PeerError(f"its back end is gone ({error}), and is waited for while the guest's requests wait"))
        self._retry.lost(asyncio.get_running_loop().time())
        if self._recovery is None:
            self._recovery = asyncio.get_running_loop().create_task(self._recover(), name="vhost-user recovery")

    async def _recover(self) -> None:
        try:
            await self._reach_again()
        except Exception as exc:  # the border: whatever goes wrong, this device is broken and nobody else
            self._fail(exc)
        finally:
            if self._recovery is asyncio.current_task():
                self._recovery = None

    async def _reach_again(self) -> None:
        """Try until a back end serves the rings. Raises PeerError, HostError when that is hopeless."""
        if self._resume is Resume.NEVER and self._told:
            raise PeerError("the back end went away, and the state of its session with it")
        retry = self._retry
        with awake_budget(retry.left) as left:
            try:
                await self._keep_trying(lambda: retry.pause(left() or 0.0))
            finally:
                retry.left = left() or 0.0

    async def _keep_trying(self, next_pause: Callable[[], float | None]) -> None:
        last: Exception = ChannelClosed("the back end went away")
        while (pause := next_pause()) is not None:
            await asyncio.sleep(pause)
            if self._live is None:
                return
            try:
                connection = await self._frontend.reopen()
                await self._start(connection, self._live)
                if self._frontend.connection is connection:
                    return
            except (HostError, ChannelClosed) as exc:  # not there yet, or gone again
                last = exc
        raise PeerError(f"the back end did not come back within {self._retry.patience:g} s: {last}")


def _enable(changed: Sequence[int], enabled: frozenset[int]) -> Steps[None]:
    for index in changed:
        yield Message(FrontendRequest.SET_VRING_ENABLE, VringState(index, int(index in enabled)))
