"""What other commands ask of an `aiovmm run` through its control socket: a line of JSON, and one for the answer.

{"do": "snapshot", "path": "/absolute", "track": true, "base": "/absolute"}    the last two may be left out
                                           {"ok": {"pages": 4711, "standstill": 0.012}}   or   {"error": "...", "code": 1}
{"do": "add", "option": "disk", "text": "path=a.img", "cwd": "/absolute", "timeout": 30}            {"ok": {"id": "disk1"}}
{"do": "remove", "id": "disk1", "force": false, "timeout": 30}                                      {"ok": {}}
{"do": "resize", "cpus": 2, "memory": 1073741824, "timeout": 60}       either may be null           {"ok": {}}
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from aiovmm.cli.messages import say
from aiovmm.errors import AiovmmError, HostError, UsageError
from aiovmm.runtime.unix_listener import SocketName, listen_at
from aiovmm.vm import VM

if TYPE_CHECKING:
    from aiovmm.cli.confinement import Confinement

__all__ = ["ask", "listening", "serve"]

_LONGEST = 16 << 10  # bytes of a line
_PATIENCE = 10.0  # seconds that a caller may take to say what it wants


@contextmanager
def listening(path: Path) -> Iterator[socket | None]:
    """A socket at `path`, which goes afterwards; None, and a word about it, if there can be none."""
    try:
        listener = listen_at(path, option="--control-socket", operation="listening for commands")
    except (UsageError, HostError) as exc:
        say(f"--control-socket: {exc}; the guest runs on without it")
        yield None
        return
    name = SocketName(path)
    try:
        yield listener
    finally:
        listener.close()
        name.remove()


async def serve(vm: VM, listener: socket, confinement: Confinement) -> None:
    """Until it is cancelled. `listener` is one of `listening`, `confinement` of this process."""
    server = await asyncio.start_unix_server(
        lambda reader, writer: _answer(vm, confinement, reader, writer), sock=listener, limit=_LONGEST
    )
    async with server:
        await server.serve_forever()


async def _answer(vm: VM, confinement: Confinement, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            line = await reader.readline()
        writer.write(json.dumps(await _done(vm, confinement, line)).encode() + b"\n")
        await writer.drain()
    except (OSError, TimeoutError, ValueError, asyncio.CancelledError):
        return  # it has left, or says too much; or all ends, which asyncio's streams of Python 3.11 would tell of as a fault
    finally:
        writer.close()


async def _done(vm: VM, confinement: Confinement, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        if not isinstance(asked, dict):
            raise UsageError("a request is a JSON object")
        if asked.get("do") == "snapshot":
            return {"ok": await _snapshot(vm, asked)}
        from aiovmm.cli.changes import JOBS  # for who asks

        if (job := JOBS.get(str(asked.get("do")))) is None:
            raise UsageError(f"do is one of snapshot, {', '.join(JOBS)}")
        return {"ok": await job(vm, asked, confinement)}
    except (ValueError, RecursionError) as exc:
        return {"error": str(exc), "code": 2}
    except (AiovmmError, OSError) as exc:
        return {"error": str(exc), "code": 1}


async def _snapshot(vm: VM, asked: dict[str, Any]) -> dict[str, Any]:
    path, base, track = asked.get("path"), asked.get("base"), asked.get("track", False)
    if not isinstance(path, str) or not isinstance(base, str | None) or not isinstance(track, bool):
        raise UsageError("path is a path, base too if it is given, and track true or false")
    taken = await vm.snapshot(path, base=base, track=track)
    return {"pages": taken.pages, "standstill": taken.standstill}


async def ask(path: Path, what: dict[str, Any]) -> dict[str, Any]:
    """The answer. Raises HostError, AiovmmError for one that is an error."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as exc:
        hint = "start the guest by `aiovmm run --control-socket PATH`"
        raise HostError("asking a guest's monitor", exc.errno or 0, hint, str(path)) from exc
    try:
        writer.write(json.dumps(what).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    answer: dict[str, Any] = json.loads(line) if line else {"error": "its monitor has ended", "code": 1}
    if "error" in answer:
        raise (UsageError if answer.get("code") == 2 else AiovmmError)(str(answer["error"]))
    return dict(answer["ok"])
