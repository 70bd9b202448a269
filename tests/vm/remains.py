"""What a VM could leave behind in its process."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import tempfile
import threading
import time
from asyncio.trsock import TransportSocket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from aiovmm.runtime import crew
from tests.host_threads import of_vcpus
from tests.limits import HANGS

__all__ = ["Remains", "own_temporary_directory"]

_OWN = "tests-"
SLACK = 80  # mappings: the interpreter's own heap, and malloc's for threads


@pytest.fixture(autouse=True, scope="session")
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary files of this process are where no other makes any."""
    tmp_path_factory.getbasetemp()  # not in there: sockets' paths are short
    usual = tempfile.tempdir
    if usual is not None and Path(usual).name.startswith(_OWN):  # asked for by two directories of tests
        yield
        return
    tempfile.tempdir = tempfile.mkdtemp(prefix=_OWN)  # no TemporaryDirectory: a forked child that ends would remove it
    yield
    made, tempfile.tempdir = tempfile.tempdir, usual
    shutil.rmtree(made, ignore_errors=True)


@dataclass(frozen=True)
class Remains:
    """A count of each kind. Names where they help to find the culprit."""

    fds: tuple[str, ...]
    threads: tuple[str, ...]
    tasks: tuple[str, ...]
    guest_mappings: int
    mappings: int
    files: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        """Count. What earlier tests have dropped in circles is gone before, so that it does not go while one counts."""
        gc.collect()
        return cls._count()

    @classmethod
    async def once_loop_has_streams(cls) -> Self:
        """The same when uvloop has opened what it opens for its first stream, and keeps: a descriptor in reserve."""
        ours, theirs = socket.socketpair()
        with theirs:
            _, writer = await asyncio.open_unix_connection(sock=ours)
            writer.close()
            await writer.wait_closed()
        if not isinstance(writer.get_extra_info("socket"), TransportSocket):
            ours.detach()
        return cls.now()

    @classmethod
    def _count(cls) -> Self:
        threads = (*(t.name for t in threading.enumerate()), *of_vcpus().values())
        me = asyncio.current_task()
        maps = Path("/proc/self/maps").read_text().splitlines()
        flags = [
            line.split() for line in Path("/proc/self/smaps").read_text().splitlines() if line.startswith("VmFlags")
        ]
        return cls(
            tuple(sorted(_fd_names())),
            tuple(
                sorted(name for name in threads if not name.startswith(("asyncio_", "uvloop_", crew.NAME)))
            ),  # the executors' stay
            tuple(sorted(t.get_name() for t in asyncio.all_tasks() if t is not me)),
            sum("aiovmm-ram" in line or "kvm-vcpu" in line for line in maps)
            + sum("dc" in words for words in flags),  # what no child process gets: private guest memory
            len(maps),
            frozenset(os.listdir(tempfile.gettempdir())),
        )

    async def check(self, timeout: float = HANGS) -> None:
        """Assert that there is nothing more than there was; what is on its way out has `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (found := self._more()) and time.monotonic() < deadline:  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.005)
        assert not found, found

    def _more(self) -> dict[str, object]:
        now = Remains._count()
        found: dict[str, object] = {}
        for name in ("fds", "threads", "tasks"):
            if getattr(now, name) != getattr(self, name):
                found[name] = (getattr(self, name), getattr(now, name))
        if now.guest_mappings > self.guest_mappings:
            found["guest_mappings"] = (self.guest_mappings, now.guest_mappings)
        if now.mappings > self.mappings + SLACK:
            found["mappings"] = (self.mappings, now.mappings)
        if new := {f for f in now.files - self.files if "aiovmm" in f}:
            found["files"] = new
        return found


def _fd_names() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that lists them
            continue
        if name.endswith("/schedstat"):  # the watchdog's, for a moment
            continue
        names.append(f"{fd} {name.split('[')[0]}")  # without inodes: uvloop has new sockets now and then
    return names
