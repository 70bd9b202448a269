"""Who asks this host's name servers what a guest asks by TCP, over connections of the host's own (RFC 7766)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.descriptors import PROCESS
from aiovmm.runtime.stream_socket import require_connected
from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.turns import next_turn
from aiovmm.sandboxes.firewall.firewall import Firewall
from aiovmm.sandboxes.firewall.streams import Asked
from aiovmm.sandboxes.firewall.tcp import Stream

__all__ = ["Answers", "name_servers"]

_PORT = 53
_PATIENCE = 4.0  # seconds for a name server: who asks waits five by default
_AT_A_TIME = 8  # questions
_AGAIN, _TRIES = 0.5, 6  # seconds until what the guest has not acknowledged is sent again; how often in vain
_CONFIGURATION = Path("/etc/resolv.conf")
_SERVERS = 3  # that a resolver asks, by resolv.conf(5)


class Answers:
    """Of one guest, whose turns of the event loop they take. `write` takes frames for it. `look` sees what is asked, `keep` to it
    that the guest hears the answers."""

    def __init__(self, firewall: Firewall, write: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        self._firewall = firewall
        self._streams = firewall.streams
        self._write = write
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_AT_A_TIME)
        self._share = PROCESS.share()
        self._news = asyncio.Event()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._share.close()

    def look(self) -> None:
        """A task for each question, of which there are few."""
        while self._streams.asked:
            task = asyncio.ensure_future(self._answer(self._streams.asked.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._done)
        if self._streams.waiting:
            self._news.set()

    async def keep(self) -> None:
        """What the guest has not acknowledged in time is sent again, and not for ever. Raises what went wrong with an answer."""
        while True:
            await self._news.wait()
            self._news.clear()
            tries: dict[Stream, tuple[int, int]] = {}
            while self._failure is None and (waiting := self._streams.waiting):
                tries = {stream: tries.get(stream, (0, stream.unread)) for stream in waiting}
                await asyncio.sleep(_AGAIN)
                for stream, (count, left) in tries.items():
                    if stream.waits:
                        tries[stream] = 0 if stream.unread < left else count + 1, stream.unread
                        is_gone = tries[stream][0] > _TRIES
                        await self._write(self._streams.drop(stream) if is_gone else stream.again())
            if self._failure is not None:
                raise self._failure

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
        self._news.set()

    async def _answer(self, asked: Asked) -> None:
        await next_turn()
        message = await self._asked(asked)
        await next_turn()
        await self._write(self._firewall.answered(asked, message, time.monotonic()))

    async def _asked(self, asked: Asked) -> bytes | None:
        async with self._gate:
            if asked.stream.over or not self._share.take():
                return None
            try:
                for server in await in_thread("name servers", name_servers, _CONFIGURATION):
                    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                        async with awake_timeout(_PATIENCE):
                            return await _ask(server, asked.message)
            finally:
                self._share.give()
        return None


async def _ask(server: str, message: bytes) -> bytes:
    """Raises OSError, also if it answers what it was not asked, which it may go on with for ever; IncompleteReadError."""
    reader, writer = await asyncio.open_connection(server, _PORT)
    try:
        require_connected(writer)
        writer.write(len(message).to_bytes(2, "big") + message)
        answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if answer[:2] != message[:2]:
            raise ConnectionError(f"{server} answers what it was not asked")
        return answer
    finally:
        writer.transport.abort()


def name_servers(configuration: Path) -> list[str]:
    """Addresses of this host's, by resolv.conf(5). Blocking."""
    found = []
    with suppress(OSError):
        for line in configuration.read_text(errors="replace").splitlines():
            words = line.split()
            with suppress(ValueError):
                if words[:1] == ["nameserver"] and len(words) > 1 and ip_address(words[1]):
                    found.append(words[1])
    return found[:_SERVERS] or ["127.0.0.1"]
