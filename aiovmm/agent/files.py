"""Files of a guest: `vm.files`. Each call is a child of the agent, so that a file system that hangs holds up that call
alone."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from aiovmm.agent.errors import guest_os_error
from aiovmm.agent.gathered import Gathered
from aiovmm.agent.process import Process, start
from aiovmm.agent.request import DEVNULL, PIPE, Request, Text
from aiovmm.agent.tree import is_plain
from aiovmm.errors import PeerError, UsageError
from aiovmm.runtime.arguments import a_path, bytes_like, whole
from aiovmm.runtime.tasks import finish, in_thread

if TYPE_CHECKING:
    from aiovmm.agent.agent import Agent
    from aiovmm.agent.host_tree import Copied, TreeWriter

__all__ = ["Files", "Stat"]

_PIECE = 256 << 10
_BATCH = 1 << 20
_WINDOW = 1 << 20
_RECORD = struct.Struct("<IIIIQqHH")
_LIST_MAX = 64 << 20  # bytes of a listing
_ENTRIES_MAX = 1 << 18  # of a directory: as objects each is ten times what it was sent as
_STAT_MAX = _RECORD.size + 2 * 0xFFFF
_LONG = 1 << 20  # bytes that are put together elsewhere than on the loop


@dataclass(frozen=True, slots=True)
class Stat:
    """One file. `name` is "" from `stat`; a name that is not UTF-8 is spelt as os.fsdecode does. `mode` has its type
    and permissions; `mtime` is in seconds since the epoch; `target` is a link's."""

    name: str
    mode: int
    size: int
    mtime: float
    uid: int
    gid: int
    target: str | None = None

    @property
    def is_dir(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.mode)


class Files:
    """Paths are the guest's, text, bytes or path objects, relative ones from "/". `user` of each: as whom, root if
    None. What the guest refuses is a GuestOSError, which is FileNotFoundError, PermissionError and so on, too; if the
    guest ends, AgentLost."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def read(self, path: Text, *, limit: int = 1 << 30, user: str | int | None = None) -> bytes:
        """Its content. Raises UsageError if that is more than `limit` bytes, which is the host's memory: `copy_out`
        it."""
        whole(limit, "read(limit=)")
        content = Gathered()
        async with self._applet("reading", "read", path, user=user) as process:
            while pieces := await _taken(process):
                for piece in pieces:
                    content.add(piece)
                if content.size > limit:
                    raise UsageError(f"{os.fsdecode(path)} in the guest has more than {limit} bytes: copy_out() it")
        return bytes(content) if content.size < _LONG else await in_thread("read", bytes, content)

    async def write(
        self,
        path: Text,
        data: bytes | str,
        *,
        mode: int | None = None,
        append: bool = False,
        user: str | int | None = None,
    ) -> None:
        """Make `data` its content, or append it; text as UTF-8. `mode`: its permissions, those it has or 0o644 if None;
        setuid and the like are not to be had."""
        content = _content(data)
        arguments = _mode(mode), "append" if append else "replace"
        async with self._applet("writing", "write", path, *arguments, user=user, feed=True) as process:
            await _feed(process, (content[at : at + _PIECE] for at in range(0, len(content), _PIECE)))

    async def list(self, path: Text = "/", *, user: str | int | None = None) -> list[Stat]:
        """What is in a directory, by name. Raises PeerError for one of more than 262,144 entries: ask a program for those."""
        async with self._applet("listing", "list", path, user=user) as process:
            data = await _all(process, _LIST_MAX)
        return await in_thread("list", _sorted, data)

    async def stat(self, path: Text, *, follow: bool = True, user: str | int | None = None) -> Stat:
        """What it is; with `follow` what a link leads to."""
        async with self._applet("looking at", "stat", path, "follow" if follow else "link", user=user) as process:
            data = await _all(process, _STAT_MAX)
        found = list(islice(_stats(bytes(data)), 2))
        if len(found) != 1 or found[0].name:
            raise PeerError("the agent in the guest sent no stat")
        return found[0]

    async def exists(self, path: Text, *, user: str | int | None = None) -> bool:
        """Whether it is there, a link that leads nowhere included."""
        try:
            await self.stat(path, follow=False, user=user)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def remove(self, path: Text, *, recursive: bool = False, user: str | int | None = None) -> None:
        """A file, a link or an empty directory; with `recursive` a directory and all below it."""
        how = "recursive" if recursive else "one"
        async with self._applet("removing", "remove", path, how, user=user):
            pass

    async def mkdir(
        self, path: Text, *, mode: int | None = None, parents: bool = False, user: str | int | None = None
    ) -> None:
        """Make a directory; with `parents` also those that it is in, and it may be there."""
        how = "parents" if parents else "one"
        async with self._applet("making", "mkdir", path, _mode(mode), how, user=user):
            pass

    async def copy_in(self, host: Text, guest: Text, *, user: str | int | None = None) -> Copied:
        """Copy a file, or a directory with all below it, of the host to the path `guest`, whose directory is there.
        What is at the same places is replaced, directories are merged. Modes lose setuid and the like; links are copied
        as they are; owner is `user`. Raises HostError for what the host refuses."""
        from aiovmm.agent.host_tree import Copied, read_tree

        copied = Copied()
        pieces = read_tree(a_path(host, "copy_in(host)"), copied)
        async with self._applet("copying to", "unpack", guest, user=user, feed=True) as process:
            await _feed_from_thread(process, pieces)
        return copied

    async def copy_out(
        self, guest: Text, host: Text, *, limit: int | None = None, user: str | int | None = None
    ) -> Copied:
        """Copy a file or a directory with all below it to the path `host`, whose directory is there. Nothing is written
        outside of it, whatever the guest sends: links that lead out, devices, sockets and pipes are left out, which the
        answer tells. Raises UsageError for more than `limit` bytes (None: 64 GiB), of which each file, directory and link
        counts as 4096 and what is sparse as a whole; what came before stays."""
        from aiovmm.agent.host_tree import COPY_LIMIT, TreeWriter

        most = COPY_LIMIT if limit is None else whole(limit, "copy_out(limit=)")
        writer = TreeWriter(a_path(host, "copy_out(host)"), most)
        try:
            async with self._applet("copying", "pack", guest, user=user) as process:
                await _drain(process, writer)
        finally:
            await in_thread("copy out", writer.close)
        if not writer.ended:
            raise PeerError("the agent in the guest sent half a tree")
        return writer.copied

    @asynccontextmanager
    async def _applet(
        self, doing: str, name: str, path: Text, *rest: str, user: str | int | None, feed: bool = False
    ) -> AsyncIterator[Process]:
        """One of the agent's own. Its error is raised after the block, or in the place of what the block met because of
        it."""
        modes = (PIPE if feed else DEVNULL, PIPE, DEVNULL)
        request = Request(args=(name, path, *rest), user=user, modes=modes, applet=True, window=_WINDOW)
        process = await start(self._agent, request)
        try:
            with suppress(BrokenPipeError):  # it reads no more: its status says why
                yield process
            number = await process.wait()
        finally:
            process.close()
        if number:
            raise guest_os_error(f"{doing} in the guest", max(number, 0) or 5, os.fsdecode(path))


async def _taken(process: Process) -> list[bytes]:
    assert process.pieces is not None
    return await process.pieces.take()


async def _all(process: Process, most: int) -> Gathered:
    data = Gathered()
    while pieces := await _taken(process):
        for piece in pieces:
            data.add(piece)
        if data.size > most:
            raise PeerError("the agent in the guest lists without end")
    return data


async def _feed(process: Process, pieces: Iterator[bytes]) -> None:
    assert process.stdin is not None
    for piece in pieces:
        process.stdin.write(piece)
        await process.stdin.drain()
    process.stdin.close()


async def _feed_from_thread(process: Process, pieces: Iterator[bytes]) -> None:
    """What it takes to make them blocks. The next ones are made while the last are sent."""
    assert process.stdin is not None
    try:
        batch = await in_thread("copy in", _batch, pieces)
        while batch:
            for piece in batch:
                process.stdin.write(piece)
            reading = asyncio.ensure_future(in_thread("copy in", _batch, pieces))
            try:
                await process.stdin.drain()
            finally:
                batch = await finish(reading)
    finally:
        await in_thread("copy in", pieces.close)  # type: ignore[attr-defined]
    process.stdin.close()


def _batch(pieces: Iterator[bytes]) -> list[bytes]:
    """At least _BATCH bytes, unless that is the end."""
    parts, size = list[bytes](), 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= _BATCH:
            break
    return parts


async def _drain(process: Process, writer: TreeWriter) -> None:
    while pieces := await _taken(process):
        await in_thread("copy out", _written, writer, pieces)


def _written(writer: TreeWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.feed(piece)


def _stats(data: bytes) -> Iterator[Stat]:
    at = 0
    while at < len(data):
        if len(data) - at < _RECORD.size:
            raise PeerError("the agent in the guest sent half a record")
        mode, uid, gid, _, size, mtime, name, target = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if len(data) - at < name + target:
            raise PeerError("the agent in the guest sent half a record")
        text = os.fsdecode(data[at : at + name])
        link = os.fsdecode(data[at + name : at + name + target]) if target else None
        at += name + target
        yield Stat(text, mode, size, mtime / 1e9, uid, gid, link)


def _sorted(data: Gathered) -> list[Stat]:
    """In a thread: what a guest lists may be long. Names are those of entries: a program may make a path of one, and of the
    host's at that."""
    found = list(islice(_stats(bytes(data)), _ENTRIES_MAX + 1))
    if len(found) > _ENTRIES_MAX:
        raise PeerError(f"the agent in the guest lists more than {_ENTRIES_MAX} entries")
    found.sort(key=lambda stat: stat.name)
    for entry in found:
        if not is_plain(os.fsencode(entry.name)):
            raise PeerError(f"the agent in the guest lists {entry.name!r}, which is no name of a file")
    return found


def _content(data: object) -> bytes:
    if not isinstance(data, str):
        return bytes(bytes_like(data, "write(data)"))
    try:
        return data.encode()
    except UnicodeEncodeError:
        raise UsageError("write(data): the text has no spelling as UTF-8; give it as bytes") from None


def _mode(mode: int | None) -> str:
    if mode is None:
        return "-"
    if not isinstance(mode, int) or isinstance(mode, bool) or not 0 <= mode <= 0o777:
        raise UsageError(f"mode {mode!r} is not 0 to 0o777: a guest's files get no setuid from here")
    return str(mode)
