"""QEMU's storage daemon, started for one image of a format that is its affair, and ended with it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from errno import ECHILD, ENAMETOOLONG, ENOENT
from pathlib import Path
from typing import Any

from aiovmm.config import DiskConfig, ImageType
from aiovmm.errors import HostError, not_started
from aiovmm.runtime.child import Child
from aiovmm.runtime.stream_socket import PATH_LIMIT, socket_path

__all__ = ["DRIVERS", "StorageDaemon"]

PROGRAM = "qemu-storage-daemon"
DRIVERS = {ImageType.QCOW2: "qcow2", ImageType.VHD: "vpc", ImageType.VHDX: "vhdx"}
"""QEMU's names."""

_SHORTER = (
    f"a socket's path has at most {PATH_LIMIT} bytes: set TMPDIR (confined to paths: XDG_RUNTIME_DIR) to a shorter one"
)
_LAST_WORDS = 4096  # bytes of its standard error that are kept
_PATIENCE = 10.0  # seconds for writing what it has in its caches, then it is killed


class StorageDaemon:
    """Serves the image that `config` names at the socket `path`, which listens as long as this is open: who connects while the
    daemon is being started waits. `ended(error)` is called when it ends by itself."""

    def __init__(self, config: DiskConfig, kind: ImageType, ended: Callable[[HostError], None]) -> None:
        self._command = [PROGRAM, *_arguments(config, kind)]
        self._ended = ended
        self._directory = ""
        self._listener: socket.socket | None = None
        self._process: Child | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def path(self) -> Path:
        """Where it listens, once it is open."""
        return Path(self._directory) / "disk"

    @property
    def pid(self) -> int | None:
        """Of the daemon that runs, or ran last."""
        return self._process.pid if self._process is not None else None

    def listen(self) -> None:
        """In a directory that only this user can enter. Raises HostError."""
        try:
            self._directory = tempfile.mkdtemp(prefix="aiovmm-")
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(socket_path(self.path))
            self._listener.listen()
        except OSError as exc:
            place = self._directory or None
            self._close_socket()
            hint = _SHORTER if exc.errno == ENAMETOOLONG else ""
            raise HostError("listening for QEMU's storage daemon", exc.errno or 0, hint, place) from exc

    async def start(self) -> None:
        """Start it, or another one after its end. Raises HostError, which names the package if there is none."""
        assert self._listener is not None
        program = shutil.which(PROGRAM)
        if program is None:
            hint = "it is in Debian's package qemu-utils, elsewhere in qemu-img or qemu-storage-daemon"
            raise HostError("starting QEMU's storage daemon", ENOENT, hint, PROGRAM)
        fd = self._listener.fileno()
        export = {"type": "vhost-user-blk", "addr": {"type": "fd", "str": str(fd)}, "id": "export", "node-name": "disk"}
        command = [program, *self._command[1:-1], json.dumps({**json.loads(self._command[-1]), **export})]
        if setpriv := shutil.which("setpriv"):  # it goes with us, also if we are killed
            command = [setpriv, "--pdeathsig", "TERM", "--", *command]
        try:
            self._process = Child(command, pass_fds=(fd,), last_words=_LAST_WORDS)
        except OSError as exc:
            raise not_started("starting QEMU's storage daemon", exc, program) from exc
        self._watch = asyncio.get_running_loop().create_task(self._follow(self._process), name="storage daemon")

    async def _follow(self, process: Child) -> None:
        code = await process.wait()
        said = process.complaint(_LAST_WORDS).replace(f"{PROGRAM}: ", "") or "it said nothing"
        await process.aclose()  # there may be another one
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        self._ended(HostError(f"QEMU's storage daemon has ended {how}, saying: {said}", ECHILD, "see what it says"))

    def refuse(self) -> None:
        """Nobody will serve the socket any more: who connects hears that at once. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """End it, when it has written what it has. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        self._close_socket()

    def _close_socket(self) -> None:
        self.refuse()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""


async def _end(process: Child) -> None:
    process.kill(signal.SIGTERM)
    await process.aclose_after(_PATIENCE)


def _arguments(config: DiskConfig, kind: ImageType) -> tuple[str, ...]:
    """The last of them is the export, which lacks what is known at the start. JSON: a path may have commas."""
    file: dict[str, Any] = {"driver": "file", "filename": os.path.abspath(config.path or ""), "locking": "on"}
    common: dict[str, Any] = {
        "read-only": config.readonly,
        "discard": "unmap" if config.sparse else "ignore",
        "cache": {"direct": config.direct},
    }
    node = {"driver": DRIVERS[kind], "node-name": "disk", "file": {**file, **common}, **common}
    if kind is ImageType.QCOW2 and not config.backing_files:
        node["backing"] = None  # it has none: that was looked at, and it may be another file by now
    export = {"writable": not config.readonly, "num-queues": config.num_queues}
    return "--blockdev", json.dumps(node), "--export", json.dumps(export)
