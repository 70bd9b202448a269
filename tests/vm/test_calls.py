"""What a guest costs the event loop's thread, in calls of our Python functions, which repeat where times do not: a twentieth more
than was counted is a regression (x86-64, CPython 3.11)."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

import pytest

import aiovmm
from aiovmm import VM, Template
from aiovmm.architecture import host
from aiovmm.runtime.dataclass import OFTEN
from benchmarks.fork import devices
from tests.vm.guest import config, counts_on

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(host().name != "x86_64" or sys.version_info[:2] != (3, 11), reason="the numbers are theirs"),
]

START, END, FORK = 470, 230, 1393
OURS = str(Path(aiovmm.__file__).parent)


async def calls_of(live: Callable[[], Awaitable[None]]) -> int:
    """Of our functions, for one after many: what is made once is there, and what is made often is made the fast way."""
    for _ in range(OFTEN):
        await live()
    calls = 0

    def count(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(count)
    try:
        await live()
    finally:
        sys.setprofile(None)
    return calls


async def test_a_guest_that_boots() -> None:
    what = config("s")

    async def live() -> None:
        async with VM(what) as vm:
            await vm.start()
            sys.setprofile(None)

    calls = await calls_of(live)
    assert START / 2 < calls <= START, calls


async def test_the_end_of_a_guest() -> None:
    what = config("i")

    async def live() -> None:
        count = sys.getprofile()
        sys.setprofile(None)  # its start is counted above
        async with VM(what) as vm:
            await vm.start()
            sys.setprofile(count)

    calls = await calls_of(live)
    assert END / 2 < calls <= END, calls


async def test_a_fork_with_five_devices(tmp_path: Path) -> None:
    async with VM(config("s", **devices(tmp_path, taps=False))) as vm:
        await vm.start()
        await counts_on(vm)
        template = await vm.freeze()

    async def live(template: Template = template) -> None:
        async with template.fork() as child:
            await child.resume()
            sys.setprofile(None)

    async with template:
        calls = await calls_of(live)
    assert FORK / 2 < calls <= FORK, calls
