"""A name server of this host's, by TCP, for a sandbox's filter."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiovmm.sandboxes.firewall.answers import _ask
from tests.sandboxes import frames

__all__ = ["WEB", "Servers", "served"]

WEB = "1.2.3.4"


class Servers:
    """An answer of as many bytes as the question's name begins with, which says WEB."""

    def __init__(self) -> None:
        self.asked = list[bytes]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        message = await reader.readexactly(size)
        self.asked.append(message)
        length = int(message[13 : 13 + message[12]])
        number, record = int.from_bytes(message[:2], "big"), frames.address(b"\xc0\x0c", WEB)
        said = frames.answer(_name_of(message), record, number=number)
        said += b"x" * (length - len(said))
        writer.write(len(said).to_bytes(2, "big") + said)
        await writer.drain()
        writer.close()


def _name_of(message: bytes) -> str:
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels)


@asynccontextmanager
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    """The one that is asked."""
    servers = Servers()
    async with await asyncio.start_server(servers.serve, "127.0.0.1", 0) as server:
        module = sys.modules[_ask.__module__]
        monkeypatch.setattr(module, "name_servers", lambda _: ["127.0.0.1"])
        monkeypatch.setattr(module, "_PORT", server.sockets[0].getsockname()[1])
        yield servers
