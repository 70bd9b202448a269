"""A VM that was entered by hand and never left: a ResourceWarning that names it, and nothing of it stays in the process."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from aiovmm import VM, ConsoleConfig, ConsoleMode, DiskConfig, ExitReason, RngConfig, VMConfig, VsockConfig
from tests.host_threads import of_vcpus
from tests.limits import HANGS
from tests.vm.drivers import start_drivers
from tests.vm.guest import config, counts_on, until

pytestmark = pytest.mark.timeout(60)

Before = Counter[str]
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
def full(tmp_path: Path) -> VMConfig:
    """A guest with what holds descriptors, in each way of holding them."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    return config(
        "s",
        2,
        name="left",
        rng=RngConfig(),
        disks=(DiskConfig(path=image),),
        vsock=VsockConfig(cid=3, socket=tmp_path / "vsock"),
        serial=ConsoleConfig(ConsoleMode.SOCKET, tmp_path / "serial"),
        console=ConsoleConfig(ConsoleMode.PTY),
    )


async def enter(of: VMConfig, driven: bool = False) -> VM:
    """`driven`: its devices serve drivers."""
    vm = VM(of)
    await vm.__aenter__()
    await vm.start()
    await counts_on(vm)
    if driven:
        await start_drivers(vm)
    return vm


def remains() -> Before:
    """Descriptors and threads, where no loop runs."""
    found = Counter(f"thread {name}" for name in (*(t.name for t in threading.enumerate()), *of_vcpus().values()))
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            found[os.readlink(f"/proc/self/fd/{fd}").split("[")[0]] += 1
    return found


def check(before: Before, config: VMConfig) -> None:
    """There is nothing more than there was, once what is on its way out has gone."""
    deadline = time.monotonic() + HANGS
    while remains() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not remains() - before
    assert not os.path.lexists(config.serial.path or "")
    assert not os.path.lexists(config.vsock.socket if config.vsock and config.vsock.socket else "")


@pytest.fixture
def before(full: VMConfig) -> Before:
    """What there is once everything that is made only once has been made."""

    async def once() -> None:
        async with VM(full) as vm:
            await vm.start()
            await counts_on(vm)
            await start_drivers(vm)

    for new in LOOPS:
        with asyncio.Runner(loop_factory=new) as runner:
            runner.run(once())
    gc.collect()
    return remains()


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The texts of ResourceWarnings about VMs."""
    texts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
            if issubclass(category, ResourceWarning) and "VM '" in str(message):
                texts.append(str(message))

        warnings.showwarning = show
        yield texts


@pytest.mark.parametrize("new", LOOPS)
def test_the_run_ends(
    new: Callable[[], asyncio.AbstractEventLoop], full: VMConfig, before: Before, told: list[str]
) -> None:
    with asyncio.Runner(loop_factory=new) as runner:
        vm = runner.run(enter(full))
    assert vm.status is not None
    assert vm.status.reason is ExitReason.KILLED
    assert len(told) == 1
    assert told[0].startswith("VM 'left' was entered and not left: ")
    check(before, full)
    del vm
    gc.collect()
    assert len(told) == 1


@pytest.mark.parametrize("new", LOOPS)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("driven", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_loop_is_closed(
    new: Callable[[], asyncio.AbstractEventLoop],
    kept: bool,
    driven: bool,
    full: VMConfig,
    before: Before,
    told: list[str],
) -> None:
    loop = new()
    vm = loop.run_until_complete(enter(full, driven))
    if kept:  # until the watchdog has begun, which finds that the loop is gone
        loop.run_until_complete(until(lambda: "thread aiovmm watchdog" in remains()))
    loop.close()
    if not kept:
        del vm
    del loop
    gc.collect()
    check(before, full)
    assert len(told) == 1


def test_forgotten_while_its_loop_goes_on(full: VMConfig, before: Before, told: list[str]) -> None:
    async def forget() -> None:
        vm = await enter(full)
        del vm
        gc.collect()
        while of_vcpus():  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.01)

    asyncio.run(forget())
    assert len(told) == 1
    check(before, full)


@pytest.mark.parametrize("patience", [0, 0.2])
def test_who_leaves_it_while_all_tasks_are_cancelled_hears_nothing(
    patience: float, full: VMConfig, before: Before, told: list[str]
) -> None:
    async def serve(entered: asyncio.Event) -> None:
        async with VM(full) as vm:
            await vm.start()
            entered.set()
            try:
                await vm.wait()
            finally:
                await asyncio.sleep(patience)
                assert vm.status is None

    async def main() -> asyncio.Task[None]:
        entered = asyncio.Event()
        task = asyncio.create_task(serve(entered))
        await entered.wait()
        return task

    with suppress(asyncio.CancelledError):
        asyncio.run(main()).result()
    assert told == []
    check(before, full)


def test_leaving_that_the_end_of_the_loop_interrupts_is_done_all_the_same(
    full: VMConfig, before: Before, told: list[str]
) -> None:
    async def main() -> None:
        vm = await enter(full)
        task = asyncio.create_task(vm.aclose())
        await asyncio.sleep(0)
        del task

    asyncio.run(main())
    check(before, full)


def test_a_forked_child_takes_nothing_apart(full: VMConfig, tmp_path: Path) -> None:
    async def main() -> int:
        vm = await enter(full)
        child = os.fork()
        if child == 0:
            del vm
            gc.collect()
            os._exit(0)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert (tmp_path / "serial").exists()
        assert (tmp_path / "vsock").exists()
        await vm.aclose()
        return status

    assert asyncio.run(main()) == 0
