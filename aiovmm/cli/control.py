"""What other commands ask of an `aiovmm run` through its control socket: a line of JSON, and one for the answer.

{"do": "snapshot", "path": "/absolute", "track": true, "base": "/absolute"}    the last two may be left out
                                           {"ok": {"pages": 4711, "standstill": 0.012}}   or   {"error": "...", "code": 1}
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiovmm.cli.messages import say
from aiovmm.errors import AiovmmError, HostError, UsageError
from aiovmm.runtime.unix_listener import listen_at
from aiovmm.vm import VM

__all__ = ["ask", "serve"]

_LONGEST = 16 << 10  # bytes of a line
_PATIENCE = 10.0  # seconds that a caller may take to say what it wants


async def serve(vm: VM, path: Path) -> None:
    """Until it is cancelled; then the socket goes."""
    try:
        listener = listen_at(path, option="--control-socket", operation="listening for commands")
    except (UsageError, HostError) as exc:
        say(f"--control-socket: {exc}; the guest runs on without it")
        return
    try:
        server = await asyncio.start_unix_server(
            lambda reader, writer: _answer(vm, reader, writer), sock=listener, limit=_LONGEST
        )
        async with server:
            await server.serve_forever()
    finally:
        with suppress(OSError):
            os.unlink(path)


async def _answer(vm: VM, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            line = await reader.readline()
        writer.write(json.dumps(await _done(vm, line)).encode() + b"\n")
        await writer.drain()
    except (OSError, TimeoutError, ValueError):  # it has left, or says too much
        return
    finally:
        writer.close()


async def _done(vm: VM, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        if not isinstance(asked, dict) or asked.get("do") != "snapshot" or not isinstance(asked.get("path"), str):
            return {"error": "only snapshots are to be had, each by its path", "code": 2}
        base, track = asked.get("base"), asked.get("track", False)
        if not isinstance(base, str | None) or not isinstance(track, bool):
            return {"error": "base is a path, and track true or false", "code": 2}
        taken = await vm.snapshot(asked["path"], base=base, track=track)
    except (ValueError, RecursionError) as exc:
        return {"error": str(exc), "code": 2}
    except AiovmmError as exc:
        return {"error": str(exc), "code": 1}
    return {"ok": {"pages": taken.pages, "standstill": taken.standstill}}


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
