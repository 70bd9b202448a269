"""The agent of one guest: found, greeted, kept, and found again when the guest has been reset or restored."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from aiovmm.agent.channel import Channel
from aiovmm.agent.errors import AgentLost, BootTimeout, guest_os_error
from aiovmm.agent.link import Link
from aiovmm.agent.wire import Greeting, Kind
from aiovmm.errors import StateError, UsageError
from aiovmm.runtime.arguments import bytes_like, whole
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.agent.forward import Forwards
    from aiovmm.agent.place import Place

__all__ = ["Agent"]

_RETRY, _RETRY_LATE, _LATE = 0.015, 0.1, 5.0  # seconds between tries; after _LATE seconds they are rarer
_VERDICT = 1.0  # seconds that a guest whose agent was lost has to turn out to have ended
_HINTS = {
    "driver": "its kernel has not come to its vsock driver: look at its console; it needs the module "
    "vmw_vsock_virtio_transport (`aiovmm image initramfs` brings it)",
    "agent": "nobody listens at the agent's vsock port: start aiovmm-agent in the guest, as its init or from it "
    "(`aiovmm image initramfs --agent` does)",
    "greeting": "something listens at the agent's vsock port and does not answer: is that program stopped, or "
    "not the agent?",
}
_ENTROPY = 64  # bytes
_MOST_ENTROPY = 512  # that the agent takes at once
_LAST_SECOND = (1 << 63) // 10**9  # of Linux, whose time is in nanoseconds
_POWER = {"poweroff": 0, "reboot": 1, "halt": 2}


class Agent:
    """`vm.agent`. `ready` waits for it; all else does so as well, for at most `patience` seconds. One that `renews` is in a
    guest that goes on where another one stood: before anything is asked of it, it is given the time and entropy."""

    def __init__(self, place: Place, *, patience: float = 30.0, renews: bool = False) -> None:
        self.place = place
        self._renews = renews
        self.patience = patience
        self._link: Link | None = None
        self._lock: asyncio.Lock | None = None
        self._closed = False
        self._forwards: Forwards | None = None
        self._on_close: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether it has been found, and not lost since."""
        return self._link is not None and not self._link.lost

    async def ready(self, timeout: float | None = 30.0) -> Greeting:
        """Until the agent answers; what it says of itself. Raises BootTimeout, which says how far the guest has come,
        AgentLost if the guest ends instead, StateError if there is no guest or no way to it."""
        check_seconds(timeout, "ready(timeout=)")
        return await (await self.link(timeout)).greeted

    async def link(self, timeout: float | None = -1.0) -> Link:
        """The connection to it, made if there is none. The errors are those of `ready`."""
        if self._link is not None and not self._link.lost:
            return self._link
        self.require_open()
        if self._lock is None:
            self._lock = asyncio.Lock()
        seconds = self.patience if timeout == -1.0 else timeout
        stage = ["driver"]
        limit: asyncio.Timeout | None = None
        try:
            async with awake_timeout(seconds) as limit, self._lock:
                if self._link is None or self._link.lost:
                    self._link = await self._find(stage)
                return self._link
        except TimeoutError:
            if limit is None or not limit.expired():
                raise
            at = stage[0] if stage[0] == "greeting" else self.place.stage()
            raise BootTimeout(at, seconds or 0.0, self.place.console_tail(), _HINTS[at]) from None

    async def _find(self, stage: list[str]) -> Link:
        began = time.monotonic()
        while True:
            if self.place.status() is not None:
                raise self._lost("waiting for the agent")
            try:
                link = await self.place.dial(Link)
            except ConnectionError:
                late = time.monotonic() - began > _LATE
                await asyncio.sleep(_RETRY_LATE if late else _RETRY)
                continue
            except StateError:
                if self.place.status() is None:
                    raise
                raise self._lost("waiting for the agent") from None
            stage[0] = "greeting"
            try:
                await asyncio.shield(link.greeted)
                link.require()
            except ConnectionError:
                stage[0] = "agent"
                await asyncio.sleep(_RETRY)
                continue
            except BaseException:
                link.close()
                raise
            if (ended := self.place.ended()) is not None:
                link.close_after(ended)
            if self._renews:
                try:
                    await _renew(link)
                    link.require()
                except ConnectionError:  # as of one that does not greet
                    await asyncio.sleep(_RETRY)
                    continue
                except BaseException:
                    link.close()
                    raise
                self._renews = False
            return link

    async def begin(self, kind: Kind, payload: bytes, *, window: int) -> Channel:
        """A channel of it."""
        return (await self.link()).begin(kind, payload, window=window)

    # -- its end -------------------------------------------------------------------------------------------------------

    def _lost(self, what: str) -> AgentLost:
        place = self.place
        return AgentLost(what, place.status(), place.console_tail(), runs_on=place.hears_of_its_end)

    async def lost(self, what: str) -> AgentLost:
        """The error of something that was under way, when it is known whether the guest itself has ended."""
        if self.place.status() is None and (ended := self.place.ended()) is not None:
            with suppress(TimeoutError):
                async with awake_timeout(_VERDICT):
                    await ended
        return self._lost(what)

    @property
    def forwards(self) -> Forwards:
        """Its ports."""
        if self._forwards is None:
            from aiovmm.agent.forward import Forwards

            self._forwards = Forwards(self)
        return self._forwards

    def require_open(self) -> None:
        """Raises StateError after `close`."""
        if self._closed:
            raise StateError(f"{self.place.name} is not there any more")

    def at_close(self, call: Callable[[], None]) -> None:
        """To be done when nothing can be asked of it any more for good."""
        self._on_close.append(call)

    def close(self) -> None:
        """For good. Idempotent."""
        self._closed = True
        if self._link is not None:
            self._link.close()
        for call in self._on_close:
            call()
        self._on_close.clear()

    # -- the guest as a whole ------------------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Until it has answered."""
        await self._ask("asking the agent", Kind.PING, b"")

    async def set_time(self, seconds: float | None = None) -> None:
        """Set the guest's clock: to the host's, or to seconds since the epoch. Raises GuestOSError, AgentLost."""
        check_seconds(seconds, "set_time(seconds=)")
        if seconds is not None and not 0 <= seconds <= _LAST_SECOND:
            raise UsageError(f"set_time({seconds!r}): no clock has that time, in seconds since the epoch")
        nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
        await self._ask("setting the clock", Kind.CLOCK, _clock(nanoseconds))

    async def add_entropy(self, data: bytes | None = None) -> None:
        """Give the guest's random number generator entropy of the host's, and start it anew. Raises GuestOSError,
        AgentLost, and UsageError for more than 512 bytes of `data`."""
        given = os.urandom(_ENTROPY) if data is None else bytes_like(data, "add_entropy(data=)")
        whole(len(given), "the length of add_entropy(data=)", 1, _MOST_ENTROPY)
        await self._ask("adding entropy", Kind.ENTROPY, bytes(given))

    async def renew(self) -> None:
        """Clock and entropy. A guest that was restored or forked is given both by itself, when its agent is found."""
        await self.set_time()
        await self.add_entropy()

    async def shutdown(self, how: str = "poweroff") -> None:
        """Ask the guest to end in order: "poweroff", "reboot" or "halt". Returns when it has been asked."""
        if not isinstance(how, str) or how not in _POWER:
            raise UsageError(f"shutdown({how!r}): one of {', '.join(_POWER)}")
        await self._ask("shutting down", Kind.POWER, struct.pack("<I", _POWER[how]))

    async def _ask(self, what: str, kind: Kind, payload: bytes) -> None:
        link = await self.link()
        try:
            number = await link.ask(kind, payload)
        except ConnectionError:
            raise await self.lost(what) from None
        if number:
            raise guest_os_error(what, number)


def _clock(nanoseconds: int) -> bytes:
    return struct.pack("<QI", *divmod(nanoseconds, 10**9))


async def _renew(link: Link) -> None:
    """In one round trip. An agent without the right to either goes on as it is: the guest's kernel was told before. Raises
    ConnectionError."""
    clock = link.ask(Kind.CLOCK, _clock(time.time_ns()))
    await asyncio.gather(clock, link.ask(Kind.ENTROPY, os.urandom(_ENTROPY)))
