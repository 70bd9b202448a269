"""Processes of the host's that are awaited by a descriptor, whatever the program around does with its children."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aiovmm import Image
from aiovmm.runtime.child import Child
from tests.limits import HANGS


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert [
        target for target in opened() if "pidfd" in target or "memfd:output" in target or "memfd:input" in target
    ] == []


def opened() -> Iterator[str]:
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield os.readlink(path)


async def run(child: Child) -> int:
    try:
        async with asyncio.timeout(HANGS):
            return await child.wait()
    finally:
        await child.aclose()


async def test_its_status_and_what_it_says() -> None:
    child = Child(["sh", "-c", "echo out; echo errors >&2; exit 7"], stdout=True, stderr=True)
    async with asyncio.timeout(HANGS):
        assert await child.wait() == await child.wait() == 7
    assert (child.said(1, 100), child.said(2, 100), child.said(1, 3)) == (b"out\n", b"errors\n", b"ut\n")
    await child.aclose()
    await child.aclose()


async def test_one_that_ended_before_anybody_waited() -> None:
    child = Child(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it ends at once
    assert await run(child) == 0


async def test_what_it_has_started_keeps_nobody_waiting() -> None:
    """It has the output open, and lives on."""
    child = Child(["sh", "-c", "sleep 1000 & echo $!; exit 3"], stdout=True)
    async with asyncio.timeout(HANGS):
        assert await child.wait() == 3
    os.kill(int(child.said(1, 100)), signal.SIGKILL)
    await child.aclose()


async def test_a_wait_that_was_cancelled_can_be_had_again() -> None:
    child = Child(["sleep", "1000"])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.01)
    child.kill()
    assert await run(child) == -signal.SIGKILL


async def test_of_one_that_lives_for_long_the_last_words_are_kept() -> None:
    """And it is not kept waiting, however much it says, nor by who has its output and lives on."""
    say = "head -c 1000000 /dev/zero >&2; sleep 1000 & echo $!; echo the end >&2; exit 4"
    child = Child(["sh", "-c", say], stdout=True, last_words=100)
    async with asyncio.timeout(HANGS):
        assert await child.wait() == 4
    assert child.said(2, 1000) == b"\0" * 92 + b"the end\n"
    os.kill(int(child.said(1, 100)), signal.SIGKILL)
    await child.aclose()


@pytest.mark.parametrize("which", [1, 2])
async def test_without_room_for_descriptors_it_leaves_none(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    really, made = os.memfd_create, []

    def create(name: str, flags: int) -> int:
        made.append(name)
        if len(made) == which:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(name, flags)

    monkeypatch.setattr(os, "memfd_create", create)
    with pytest.raises(OSError, match="Too many open files"):
        Child(["true"], stdout=True, stderr=True)
    assert len(made) == which


async def test_its_input_ends_with_it() -> None:
    child = Child(["sh", "-c", "read line; exit 5"], held=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.05)
    await child.aclose()
    assert child.returncode == -signal.SIGKILL
    assert await run(Child(["sh", "-c", "read line; exit 5"])) == 5


async def test_a_program_that_reaps_whatever_ends() -> None:
    child = Child(["true"])
    os.waitpid(child.pid, 0)  # noqa: ASYNC222 - it ends at once
    assert await run(child) == 255


async def test_an_image_is_made_where_sigchld_is_ignored(tmp_path: Path) -> None:
    """Nobody is told of the end of a process then, neither a handler of signals nor who calls waitpid."""
    (tmp_path / "tree").mkdir()
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with asyncio.timeout(HANGS):
            built = await Image.from_directory(tmp_path / "tree", cache=tmp_path / "cache").build()
        built.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child([str(tmp_path / "none")], held=True, stdout=True, stderr=True)
