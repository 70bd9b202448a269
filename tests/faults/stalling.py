"""python -m tests.faults.stalling FOLDER SIZE: a file system of one file, `disk`, whose storage stops to answer if told to.

It speaks the kernel's protocol for file systems in user space (fuse(4), linux/fuse.h) by itself. While it stalls, what reads,
writes or flushes waits, as on a disk whose controller hangs or on a server that is gone: with no error, no limit, and not to be
killed. Names and attributes are answered all the time, as from a cache. Lines on standard input: `stall`, `go`; its end unmounts.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.limits import HANGS

__all__ = ["ROOT", "Stalling", "stalling"]

ROOT = Path(__file__).resolve().parents[2]
_MS_NOSUID_NODEV, _MNT_DETACH = 6, 2
_DISK, _FOREVER, _MOST = 2, 1 << 30, 128 << 10
_PATIENCE = 60.0  # seconds that nobody wants anything
_HEADER, _ANSWER = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")


class Op(enum.IntEnum):
    """FUSE_*."""

    LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
    RELEASE, FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 18, 20, 25, 26, 27, 29, 36, 42


_OF_STORAGE = {Op.READ, Op.WRITE, Op.FSYNC}
_SILENT = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT}


class Server:
    """`fd` is /dev/fuse's, mounted."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._data = bytearray(size)
        self._waiting: list[tuple[int, int, int, bytes]] | None = None

    def stall(self) -> None:
        """Storage answers no more."""
        self._waiting = self._waiting or []

    def go(self) -> None:
        """It does again, also what it was asked meanwhile."""
        waiting, self._waiting = self._waiting or [], None
        for each in waiting:
            self._answer(*each)

    def serve(self) -> None:
        """One request."""
        try:
            message = os.read(self._fd, _MOST + 4096)
        except OSError as exc:
            if exc.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: it was interrupted before it was read
                return
            raise
        _, opcode, unique, node, *_ = _HEADER.unpack_from(message)
        request = unique, opcode, node, message[_HEADER.size :]
        if self._waiting is not None and opcode in _OF_STORAGE:
            self._waiting.append(request)
            print("stalls", flush=True)
        elif opcode not in _SILENT:
            self._answer(*request)

    def _answer(self, unique: int, opcode: int, node: int, body: bytes) -> None:
        try:
            error, data = 0, self._data_for(opcode, node, body)
        except OSError as exc:
            error, data = -(exc.errno or errno.EIO), b""
        os.write(self._fd, _ANSWER.pack(_ANSWER.size + len(data), error, unique) + data)

    def _data_for(self, opcode: int, node: int, body: bytes) -> bytes:
        match opcode:
            case Op.INIT:
                flags = struct.unpack_from("=IIII", body)[3] & (1 << 5)  # FUSE_BIG_WRITES
                return struct.pack("=IIIIHHIIHH32x", 7, 31, _MOST, flags, 64, 48, _MOST, 1, _MOST >> 12, 0)
            case Op.LOOKUP:
                if body.rstrip(b"\0") != b"disk":
                    raise OSError(errno.ENOENT, "")
                return struct.pack("=QQQQII", _DISK, 0, _FOREVER, _FOREVER, 0, 0) + self._attributes(_DISK)
            case Op.GETATTR | Op.SETATTR:
                return struct.pack("=QII", _FOREVER, 0, 0) + self._attributes(node)
            case Op.OPEN | Op.OPENDIR:
                return struct.pack("=QII", 1, 0, 0)
            case Op.READ:
                _, offset, size = struct.unpack_from("=QQI", body)
                return bytes(self._data[offset : offset + size])
            case Op.WRITE:
                _, offset, size = struct.unpack_from("=QQI", body)
                self._data[offset : offset + size] = body[40 : 40 + size]
                return struct.pack("=II", size, 0)
            case Op.STATFS:
                return struct.pack("=QQQQQIII4x24x", 1 << 20, 1 << 20, 1 << 20, 9, 9, 4096, 255, 4096)
            case Op.RELEASE | Op.RELEASEDIR | Op.FLUSH | Op.FSYNC:
                return b""
        raise OSError(errno.ENOSYS, "")

    def _attributes(self, node: int) -> bytes:
        kind = stat.S_IFREG | 0o600 if node == _DISK else stat.S_IFDIR | 0o700
        size = len(self._data) if node == _DISK else 0
        return struct.pack("=QQQQQQIIIIIIIIII", node, size, size >> 9, 0, 0, 0, 0, 0, 0, kind, 1, 0, 0, 0, 4096, 0)


def main() -> None:
    """See the module."""
    place, size = sys.argv[1].encode(), int(sys.argv[2])
    c = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40700,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if c.mount(b"stalling", place, b"fuse", _MS_NOSUID_NODEV, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    server = Server(fd, size)
    try:
        print("mounted", flush=True)
        while True:
            ready_ones = select.select([fd, 0], [], [], _PATIENCE)[0]
            if not ready_ones:  # a test that hangs, in a process that cannot even be killed before we answer
                return
            for ready in ready_ones:
                if ready == fd:
                    server.serve()
                elif not (line := os.read(0, 100).split()):
                    return
                else:
                    {b"stall": server.stall, b"go": server.go}[line[0]]()
                    print("done", flush=True)
    finally:
        c.umount2(place, _MNT_DETACH)
        os.close(fd)  # who waits for an answer has an error: ECONNABORTED


class Stalling:
    """A test's: the file system in another process, whose threads nobody here can hold up."""

    def __init__(self, folder: Path, size: int) -> None:
        self.disk = folder / "disk"
        command = [sys.executable, "-m", "tests.faults.stalling", str(folder), str(size)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._await("mounted")

    def _await(self, word: str) -> None:
        for line in _pipe(self._process.stdout):
            if line.strip() == word:
                return
        raise AssertionError(f"the file system ended with {self._process.wait()}")

    def _say(self, word: str) -> None:
        print(word, file=_pipe(self._process.stdin), flush=True)
        self._await("done")

    def stall(self) -> None:
        """From now on."""
        self._say("stall")

    def await_victim(self) -> None:
        """Until somebody waits for it. Blocks; for a thread."""
        self._await("stalls")

    def go(self) -> None:
        """All is answered."""
        self._say("go")

    def end(self) -> None:
        """Idempotent."""
        _pipe(self._process.stdin).close()
        self._process.wait(HANGS)
        _pipe(self._process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def stalling(folder: Path, size: int) -> Iterator[Stalling]:
    """Mounted on `folder`. Raises OSError or AssertionError where that cannot be."""
    mounted = Stalling(folder, size)
    try:
        yield mounted
    finally:
        mounted.end()


if __name__ == "__main__":
    main()
