"""A sandbox that is given up, or runs out of time, at any step from its first to its last: nothing is left of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiovmm
from aiovmm import Image
from aiovmm.devices.virtio.net import passt
from aiovmm.sandboxes import guest as guests
from aiovmm.sandboxes import virtiofsd
from tests.agent.conftest import Guest, guest
from tests.limits import HANGS
from tests.sandboxes.bare import bare
from tests.vm.conftest import emulated
from tests.vm.remains import Remains, own_temporary_directory

__all__ = ["emulated", "guest", "own_temporary_directory"]

pytestmark = pytest.mark.kvm

PROGRAMS = {
    "virtiofsd": '#!/bin/sh\ncase "$*" in --help) echo --shared-dir --readonly;; *) exec sleep 1000;; esac\n',
    "passt": "#!/bin/sh\nexec sleep 1000\n",
}


@pytest.fixture
def runtime() -> Iterator[Path]:
    """Where sockets go, whose paths may not be as long as those of pytest's own directories."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guest: Guest, emulated: bool, runtime: Path
) -> dict[str, Any]:
    """What takes time: an image that is made, a kernel that is looked for, a volume, a network, a disk, a port."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    for module in (virtiofsd, passt):
        monkeypatch.setattr(module, "_PATIENCE", 0.05)  # these end by no guest's end
    given = bare(monkeypatch, tmp_path, guest.path)
    kernel = given.pop("kernel")
    monkeypatch.setattr(guests, "find_sandbox_kernel", lambda: kernel)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    changes = {"volumes": [f"{tmp_path}/tree:/x"], "network": True, "publish": {0: 80}, "disk": "16M"}
    return {**given, "image": Image.from_directory(tmp_path / "tree"), **changes}


@types.coroutine
def driven(work: Coroutine[Any, Any, None], step: int, then: Callable[[], object]) -> Generator[Any, Any, bool]:
    """`work` to its end; `then` is called when it waits for the `step`th time. Whether it did so often."""
    value, error = None, None
    for waits in itertools.count():
        try:
            waited_for = work.send(value) if error is None else work.throw(error)
        except StopIteration:
            return waits >= step
        if waits + 1 == step:
            asyncio.get_running_loop().call_soon(then)
        try:
            value, error = (yield waited_for), None
        except BaseException as exc:
            value, error = None, exc
    raise AssertionError


async def used(given: dict[str, Any]) -> None:
    async with aiovmm.sandbox(**given) as vm:
        assert (await vm.run(["echo", "x"])).stdout == b"x\n"


async def cancelled_at(step: int, given: dict[str, Any]) -> bool:
    async def work() -> bool:
        return await driven(used(given), step, lambda: task.cancel())

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    return task.cancelled() or task.result()


async def out_of_time_at(step: int, given: dict[str, Any]) -> bool:
    try:
        async with asyncio.timeout(None) as limit:
            return await driven(used(given), step, lambda: limit.reschedule(0))
    except TimeoutError:
        return True


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def files(*folders: Path) -> set[Path]:
    """But what the cache of images notes of a source once that is old enough."""
    return {path for folder in folders for path in folder.rglob("*") if "sources" not in path.parts}


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("given_up", [cancelled_at, out_of_time_at], ids=["cancelled", "out of time"])
async def test_at_any_step_it_leaves_nothing(
    given: dict[str, Any], given_up: Any, tmp_path: Path, runtime: Path
) -> None:
    await used(given)
    there, mounted, kept = children(), mounts(), files(runtime, tmp_path)
    remains = await Remains.once_loop_has_streams()
    for step in itertools.count(1):
        async with asyncio.timeout(HANGS):
            if not await given_up(step, given):
                break
        assert children() == there, step
        assert files(runtime, tmp_path) == kept, step
        await remains.check()
    assert step > 15, "it has more to wait for"
    assert mounts() == mounted


async def test_an_image_that_is_given_up_while_it_is_made(given: dict[str, Any], tmp_path: Path, runtime: Path) -> None:
    """At each step of that: here it is not in the cache."""
    await used({**given, "image": tmp_path / "bin"})
    there, kept = children(), files(runtime, tmp_path)
    remains = await Remains.once_loop_has_streams()
    for step in itertools.count(1):
        async with asyncio.timeout(HANGS):
            await cancelled_at(step, given)
        assert children() == there, step
        await remains.check()
        if files(runtime, tmp_path) != kept:  # it has been made
            break
    assert step > 5
    assert files(runtime, tmp_path) - kept
    await used(given)
