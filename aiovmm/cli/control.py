"""What other commands ask of an `aiovmm run` through its control socket: a line of JSON, and one for the answer.

{"do": "snapshot", "path": "/absolute", "track": true, "base": "/absolute"}    the last two may be left out
                                           {"ok": {"pages": 4711, "standstill": 0.012}}   or   {"error": "...", "code": 1}
{"do": "add", "option": "disk", "text": "path=a.img", "cwd": "/absolute", "timeout": 30}            {"ok": {"id": "disk1"}}
{"do": "remove", "id": "disk1", "force": false, "timeout": 30}                                      {"ok": {}}
{"do": "resize", "cpus": 2, "memory": 1073741824, "timeout": 60}       either may be null           {"ok": {}}

A space before the answer says that the monitor is at work: one comes as soon as it is, and another each 5 s.

Whoever may connect is answered, whatever he says, and has a bound: a line of 16 KiB, 10 s to say it and as many to take the
answer, and 64 callers at a time. And whoever asks believes no monitor: a guest may have taken it over, and one that says nothing
for 30 s is stopped, or hangs.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from aiovmm.cli.messages import say
from aiovmm.errors import AiovmmError, HostError, PeerError, UsageError, host_error
from aiovmm.runtime.descriptors import PROCESS, Share
from aiovmm.runtime.stream_socket import require_connected, streams_to
from aiovmm.runtime.unix_listener import SocketName, listen_at
from aiovmm.vm import VM

if TYPE_CHECKING:
    from aiovmm.cli.confinement import Confinement

__all__ = ["ask", "listening", "serve"]

_LONGEST = 16 << 10  # bytes of a line
_LONGEST_REASON = 4096  # characters: of a request it may have all, six characters for each
_PATIENCE = 10.0  # seconds that a caller may take to say what it wants, and to take the answer
_LINGER = 1.0  # seconds
_BEAT = 5.0  # seconds between two words of a monitor that is at work
_MUTE = 30.0  # seconds in which there is none from one that is not
_LONGEST_ANSWER = 64 << 10  # bytes
_LARGEST_NUMBER = 1 << 63
_CALLERS = 64


@contextmanager
def listening(path: Path) -> Iterator[socket | None]:
    """A socket at `path`, which goes afterwards; None, and a word about it, if there can be none."""
    try:
        listener = listen_at(path, option="--control-socket", operation="listening for commands")
    except (UsageError, HostError) as exc:
        told = exc if isinstance(exc, UsageError) else f"--control-socket: {exc}"  # the former names it
        say(f"{told}; the guest runs on without it")
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
    callers = PROCESS.share()

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with _place(callers) as has_place:
            answer = await _answer(reader, writer, vm, confinement) if has_place else _FULL
            await _tell(reader, writer, answer, _LINGER if has_place else 0)

    try:
        async with await asyncio.start_unix_server(called, sock=listener, limit=_LONGEST) as server:
            await server.serve_forever()
    finally:
        callers.close()


@contextmanager
def _place(callers: Share) -> Iterator[bool]:
    """Whether there is one for one more."""
    taken = callers.held < _CALLERS and callers.take()
    try:
        yield taken
    finally:
        if taken:
            callers.give()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, vm: VM, confinement: Confinement
) -> dict[str, Any] | None:
    from aiovmm.runtime.awake import awake_timeout  # for who is asked

    try:
        async with awake_timeout(_PATIENCE):
            line = await reader.readline()
        async with _at_work(writer):
            return await _done(vm, confinement, line)
    except ValueError:  # asyncio's, of a line that goes on
        return _refused(f"a request has more than {_LONGEST} bytes")
    except TimeoutError:
        return _refused(f"no whole request came within {_PATIENCE:g} s")
    except (OSError, asyncio.CancelledError):
        return None  # it has left; or all ends, which asyncio's streams of Python 3.11 would tell of as a fault
    except Exception as exc:  # a mistake of ours: told to both
        asyncio.get_running_loop().call_exception_handler({"message": "answering a request failed", "exception": exc})
        return {"error": f"a fault of the guest's monitor: {exc!r}", "code": 1}


@asynccontextmanager
async def _at_work(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Who asked is told, for as long as this is entered."""

    async def beat() -> None:
        while not writer.is_closing():  # white space, before the answer's JSON
            writer.write(b" ")
            await asyncio.sleep(_BEAT)

    beating = asyncio.get_running_loop().create_task(beat(), name="control: at work")
    try:
        yield
    finally:
        beating.cancel()


async def _tell(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: dict[str, Any] | None, linger: float
) -> None:
    """And nothing more, whether or not it is taken. What else was said is read first, for so many seconds: to close with that
    unread resets the connection, and who has just been answered may be told of that alone."""
    from aiovmm.runtime.awake import awake_timeout

    try:
        if answer is not None:
            require_connected(writer)
            writer.transport.set_write_buffer_limits(0)  # all of it is the kernel's then
            writer.write(json.dumps(answer).encode() + b"\n")
            async with awake_timeout(_PATIENCE):
                await writer.drain()
            writer.write_eof()
            async with asyncio.timeout(linger):
                while await reader.read(_LONGEST):
                    pass
    except (OSError, asyncio.CancelledError):  # it has left, or reads or says without end; or all ends
        pass
    finally:
        writer.transport.abort()


def _refused(why: str) -> dict[str, Any]:
    return {"error": why[:_LONGEST_REASON], "code": 2}


_FULL = {"error": f"{_CALLERS} others ask for something already, or this process has no descriptor left", "code": 1}


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
        return _refused(str(exc))
    except (AiovmmError, OSError) as exc:
        return {"error": str(exc)[:_LONGEST_REASON], "code": 1}
    except (ImportError, MemoryError, RuntimeError, SystemError) as exc:
        if (limit := host_error("doing what it was asked", exc)) is None:
            raise
        return {"error": str(limit), "code": 1}


async def _snapshot(vm: VM, asked: dict[str, Any]) -> dict[str, Any]:
    path, base, track = asked.get("path"), asked.get("base"), asked.get("track", False)
    if not isinstance(path, str) or not isinstance(base, str | None) or not isinstance(track, bool):
        raise UsageError("path is a path, base too if it is given, and track true or false")
    taken = await vm.snapshot(path, base=base, track=track)
    return {"pages": taken.pages, "standstill": taken.standstill}


async def ask(path: Path, what: dict[str, Any], **has: type) -> dict[str, Any]:
    """The answer, which `has` fields of these kinds, however long it takes. Raises HostError, AiovmmError if it is an error,
    PeerError if it is none, or nothing at all comes."""
    try:
        reader, writer = await streams_to(path)
    except OSError as exc:
        raise _nobody_there(path, exc) from exc
    try:
        require_connected(writer)
        writer.write(json.dumps(what).encode() + b"\n")
        line = await _said(reader)
    except ConnectionError:
        line = b""
    except TimeoutError:
        more = "it is stopped, or hangs; what it was asked for it may do yet"
        raise PeerError(f"{path}: the guest's monitor has said nothing for {_MUTE:g} s: {more}") from None
    finally:
        writer.close()
    return _taken_apart(path, line, has)


def _nobody_there(path: Path, error: OSError) -> HostError:
    hint = "start the guest by `aiovmm run --control-socket PATH`"
    if error.errno == errno.EAGAIN:
        hint = "others wait there already: is it stopped?"
    return HostError("asking a guest's monitor", error.errno or 0, hint, str(path))


async def _said(reader: asyncio.StreamReader) -> bytes:
    """A line, or what there is of it, without what says that it is to come. Raises TimeoutError, OSError."""
    from aiovmm.runtime.awake import awake_timeout  # for who asks

    line = b""
    while not line.endswith(b"\n"):
        async with awake_timeout(_MUTE):
            piece = await reader.read(_LONGEST_ANSWER)
        line = (line + piece).lstrip(b" ")
        if len(line) > _LONGEST_ANSWER:
            return b"no JSON: longer than an answer is"
        if not piece:
            break
    return line


def _taken_apart(path: Path, line: bytes, has: Mapping[str, type]) -> dict[str, Any]:
    """What it says was done; else raises."""
    answer: Any = {"error": "its monitor has ended", "code": 1}
    if line:
        answer = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
    told = answer if isinstance(answer, dict) else {}
    if isinstance(error := told.get("error"), str):
        raise (UsageError if told.get("code") == 2 else AiovmmError)(error)
    done = told.get("ok")
    if not isinstance(done, dict) or not all(_is_a(kind, done.get(name)) for name, kind in has.items()):
        raise PeerError(f"{path}: who listens there does not answer as a guest's monitor does")
    return done


def _is_a(kind: type, value: object) -> bool:
    """A number that can be printed, or text that commands no terminal."""
    if isinstance(value, int | float):
        return isinstance(value, kind) and 0 <= value < _LARGEST_NUMBER
    return isinstance(value, kind) and (not isinstance(value, str) or value.isprintable())
