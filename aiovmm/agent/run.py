"""One command, from its start to its end: `vm.run`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiovmm.agent.channel import Channel
from aiovmm.agent.errors import CommandFailed, CommandTimeout, OutputTooLong, command_line
from aiovmm.agent.gathered import Gathered
from aiovmm.agent.process import start_error
from aiovmm.agent.request import DEVNULL, PIPE, Request, Text
from aiovmm.agent.wire import Kind, Stream
from aiovmm.runtime.arguments import bytes_like, whole
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.agent.agent import Agent

__all__ = ["OUTPUT_LIMIT", "Completed", "run"]

OUTPUT_LIMIT = 256 << 20
"""Bytes of each of stdout and stderr that `run` keeps: what a guest prints is the host's memory."""
_WINDOW = 1 << 20
_LONG = 1 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command did: `returncode` is its status, or the number of a signal below zero; `stdout` and `stderr` are
    bytes."""

    args: tuple[bytes, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


class _Kept:
    """One stream's output, until it is too much."""

    def __init__(self, limit: int, changed: asyncio.Event) -> None:
        self._kept = Gathered()
        self._limit = limit
        self._changed = changed
        self.is_too_long = False

    @property
    def size(self) -> int:
        return self._kept.size

    def feed(self, data: bytes) -> bool:
        room = self._limit - self._kept.size
        self._kept.add(data[:room])
        if len(data) > room:
            self.is_too_long = True
            self._changed.set()
        return not self.is_too_long

    def end(self) -> None:
        pass

    def __bytes__(self) -> bytes:
        return bytes(self._kept)


class _Command:
    """A command and what there is of its output at any time."""

    def __init__(self, agent: Agent, request: Request, limit: int) -> None:
        self.words = tuple(os.fsencode(word) for word in request.args)
        self._agent = agent
        self._request = request
        self._limit = limit
        self._changed = asyncio.Event()
        self._channel: Channel | None = None
        self.stdout, self.stderr = _Kept(limit, self._changed), _Kept(limit, self._changed)

    async def run(self, payload: bytes, data: bytes | bytearray) -> Completed:
        self._channel = channel = await self._agent.begin(Kind.START, payload, window=self._request.window)
        channel.sinks |= {Stream.STDOUT: self.stdout, Stream.STDERR: self.stderr}
        channel.on_over = self._changed.set
        if data:
            channel.write(data)
            channel.write_eof()
        while not channel.over:
            await self._changed.wait()
            self._changed.clear()
            if self.stdout.is_too_long or self.stderr.is_too_long:
                raise OutputTooLong(self.words, self._limit, *await self.printed())
        if channel.failed is not None:
            raise start_error(channel.failed, self._request)
        if channel.exit is None:
            raise await self._agent.lost(command_line(self.words))
        return Completed(self.words, channel.exit, *await self.printed())

    async def printed(self) -> tuple[bytes, bytes]:
        """All, once no more comes. What is long is put together in a thread: nobody else waits for it."""
        self.close()
        if self.stdout.size + self.stderr.size < _LONG:
            return bytes(self.stdout), bytes(self.stderr)
        return await in_thread("output", lambda: (bytes(self.stdout), bytes(self.stderr)))

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._channel is not None:
            self._channel.close(kill=True)


async def run(
    agent: Agent,
    args: Sequence[Text],
    *,
    input: bytes = b"",
    timeout: float | None = None,
    env: Mapping[str, Text] | None = None,
    cwd: Text | None = None,
    user: str | int | None = None,
    check: bool = False,
    limits: Mapping[str, int | tuple[int, int]] | None = None,
    output_limit: int = OUTPUT_LIMIT,
) -> Completed:
    """See `vm.run`."""
    check_seconds(timeout, "run(timeout=)")
    data = b"" if input is None else bytes_like(input, "input")
    whole(output_limit, "run(output_limit=)")
    request = Request(
        args=args,
        env=env or {},
        cwd=cwd,
        user=user,
        limits=limits or {},
        modes=(PIPE if data else DEVNULL, PIPE, PIPE),
        ends=True,
        window=_WINDOW,
    )
    payload = request.payload()
    command = _Command(agent, request, output_limit)
    limit: asyncio.Timeout | None = None
    try:
        async with awake_timeout(timeout) as limit:
            done = await command.run(payload, data)
    except TimeoutError:
        if limit is None or not limit.expired():
            raise
        raise CommandTimeout(*await command.printed(), command=command.words, timeout=timeout or 0.0) from None
    finally:
        command.close()
    if check and done.returncode:
        raise CommandFailed(done.args, done.returncode, done.stdout, done.stderr)
    return done
