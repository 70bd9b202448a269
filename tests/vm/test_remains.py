"""A VM leaves nothing behind: not after many lives, not when it is cancelled at any await, not when any step of it fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    EventKind,
    ExitReason,
    HostError,
    RebootPolicy,
    RngConfig,
    VMConfig,
    VMState,
)
from aiovmm.boot import x86_64
from aiovmm.boot.x86_64 import KernelImage, acpi
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.errors import host_error
from aiovmm.kvm import ExitLoop, Kvm, Vcpu, VmFd
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine import assembly, parts
from aiovmm.machine.x86_64 import board, legacy, tables, vcpus
from aiovmm.memory import GuestMemory
from aiovmm.native.mapping import GuestMapping
from aiovmm.pci import virtio
from aiovmm.runtime.prepared import Prepared
from tests.limits import HANGS
from tests.vm.guest import config, counts_on, event, until
from tests.vm.remains import Remains

pytestmark = pytest.mark.timeout(120)


def full(does: str, cpus: int = 2, **changes: Any) -> VMConfig:
    """A guest with one of everything that needs no other process."""
    console = ConsoleConfig(ConsoleMode.NULL)
    return config(does, cpus, rng=RngConfig(), console=console, **changes)


@pytest.fixture
async def remains() -> Remains:
    """What there is once everything that is made only once has been made."""
    async with VM(full("s")) as vm:
        await vm.start()
        await counts_on(vm)
    await asyncio.to_thread(lambda: None)
    return Remains.now()


async def test_five_hundred_lives(remains: Remains) -> None:
    for i in range(500):
        does = "iswxhno"[i % 7]
        async with VM(full(does)) as vm:
            await vm.start()
            if does == "o":
                await vm.wait()
            elif i % 3:
                await vm.pause()
            if i % 2:
                await vm.kill()
    await remains.check()


async def test_vms_that_were_never_entered_or_never_started(remains: Remains) -> None:
    for _ in range(20):
        VM(full("s"))
        async with VM(full("s")):
            pass
    await remains.check()


# -- cancellation


class CancelAt:
    """Awaits `work` in the current task, and cancels that task at its n-th suspension: while it waits, or as it is woken."""

    def __init__(self, work: Awaitable[None], at: int, *, woken: bool) -> None:
        self._work, self._at, self._woken = work, at, woken
        self.count = 0

    def __await__(self) -> Generator[Any, None, None]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration:
                return
            self.count += 1
            if self.count == self._at:
                self._cancel(waits_for)
            error = None
            try:
                yield waits_for
            except BaseException as exc:
                error = exc

    def _cancel(self, waits_for: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._woken and waits_for is not None:
            blocking = waits_for._asyncio_future_blocking
            waits_for.add_done_callback(lambda _: task.cancel())
            assert blocking
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


async def cancel_everywhere(life: Callable[[], Awaitable[None]], remains: Remains, *, woken: bool) -> int:
    """Run `life` to its end once for each of its awaits, cancelled there; how many there are."""
    for at in range(1, 1000):
        steps = CancelAt(life(), at, woken=woken)

        async def run(steps: CancelAt = steps) -> None:
            await steps

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(run(), name=f"cancelled at {at}")
        await remains.check()
        if steps.count < at:
            return at - 1
    raise AssertionError("it never ends")


async def all_of_it() -> None:
    async with VM(full("s")) as vm:
        await vm.start()
        await vm.pause()
        await vm.resume()
        await vm.pause()
        await vm.resume()
        await vm.stop(timeout=0.001)


async def ask_and_kill() -> None:
    async with VM(full("x")) as vm:
        await vm.start()
        await vm.pause()
        await vm.kill()


async def resets() -> None:
    async with VM(full("r", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        async for happened in vm.events():
            if happened.kind is EventKind.REBOOTED:
                break
        await vm.kill()


async def prefaulted() -> None:
    base = full("s")
    async with VM(replace(base, memory=replace(base.memory, prefault=True))) as vm:
        await vm.start()
        await vm.kill()


@pytest.mark.timeout(400)  # some hundred lives
@pytest.mark.parametrize("woken", [False, True], ids=["while it waits", "as it is woken"])
@pytest.mark.parametrize("life", [all_of_it, ask_and_kill, resets, prefaulted], ids=lambda f: f.__name__)
async def test_cancelled_at_every_await(life: Callable[[], Awaitable[None]], woken: bool, remains: Remains) -> None:
    async with VM(config("x", name="neighbour")) as neighbour:
        await neighbour.start()
        await until(lambda: any(thread.name == "aiovmm watchdog" for thread in threading.enumerate()))
        both = Remains.now()
        awaits = await cancel_everywhere(life, both, woken=woken)
        assert awaits >= 3
        assert neighbour.state is VMState.RUNNING
        await counts_on(neighbour, 100)
    await remains.check()


async def test_a_thread_that_fills_guest_memory_keeps_it_to_the_end(
    remains: Remains, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    setup = x86_64.setup_linux
    machines: list[Any] = []

    def slow(memory: GuestMemory, *arguments: Any) -> Any:
        machines.append(memory)
        begun.set()
        assert go_on.wait(HANGS)
        return setup(memory, *arguments)

    monkeypatch.setattr(x86_64, "setup_linux", slow)
    entering = asyncio.ensure_future(VM(full("s")).__aenter__())
    await asyncio.to_thread(begun.wait, 20)
    entering.cancel()
    done, _ = await asyncio.wait([entering], timeout=0.05)
    assert not done
    assert machines[0].regions
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not machines[0].regions
    await remains.check()


async def test_who_is_cancelled_while_memory_is_prefaulted_does_not_wait_for_all_of_it(
    remains: Remains, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, filled = threading.Event(), threading.Event(), []

    def slow(mapping: GuestMapping, start: int, size: int) -> None:
        filled.append(size)
        begun.set()
        assert go_on.wait(HANGS)

    monkeypatch.setattr("aiovmm.memory.populating._PIECE", 2 << 20)
    monkeypatch.setattr(GuestMapping, "populate", slow)
    base = full("s")
    entering = asyncio.ensure_future(
        VM(replace(base, memory=replace(base.memory, size=64 << 20, prefault=True))).__aenter__()
    )
    await asyncio.to_thread(begun.wait, 20)
    entering.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert len(filled) <= 2, "of 32 pieces"
    await remains.check()


async def test_a_vm_that_is_given_up_while_it_is_built_waits_for_no_collector() -> None:
    made: list[weakref.ref[VM]] = []

    async def enters() -> None:
        vm = VM(full("s"))
        made.append(weakref.ref(vm))
        await vm.__aenter__()

    async def run() -> None:
        await CancelAt(enters(), 1, woken=False)

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(run())
        await until(lambda: made[0]() is None)
    finally:
        gc.enable()


async def test_cancelled_twice_while_it_closes(remains: Remains) -> None:
    vm = VM(full("s"))
    await vm.__aenter__()
    await vm.start()
    closing = asyncio.ensure_future(vm.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert vm.status is not None
    await remains.check()


# -- failure

STEPS: list[tuple[Any, str]] = [
    (parts, "load_kernel"),
    (RngDevice, "open"),
    (GuestMemory, "create"),
    (Kvm, "open"),
    (Kvm, "create_vm"),
    (cpuid, "get_supported"),
    (board, "set_identity_pages"),
    (VmFd, "set_memory"),
    (board, "split_irqchip"),
    (legacy, "Rtc"),
    (legacy, "SerialPort"),
    (board, "LegacyDevices"),
    (assembly, "PciBuses"),
    (virtio.VirtioPci, "__init__"),
    (acpi, "build"),
    (GuestMemory, "write"),
    (KernelImage, "load_into"),
    (x86_64, "setup_linux"),
    (board, "create_vcpus"),
    (VmFd, "create_vcpu"),
    (VcpuState, "set_packed_cpuid"),
    (VcpuState, "set_msrs"),
    (VcpuState, "reset_fpu"),
    (VcpuState, "wire_local_interrupts"),
    (VcpuState, "change_sregs"),
    (VcpuState, "set_regs"),
    (VmFd, "publish"),
    (ExitLoop, "open"),
    (Vcpu, "start"),
]


def refuse(*_args: object, **_kwargs: object) -> Any:
    raise HostError("doing that", errno.EMFILE, "close something")


def names(step: object) -> str:
    return step if isinstance(step, str) else getattr(step, "__name__", "")


def nothing_prepared(patch: pytest.MonkeyPatch) -> None:
    """The next guest is the first of its configuration."""
    patch.setattr(vcpus, "_processors", Prepared(64))
    patch.setattr(tables, "_tables", Prepared(64))


@pytest.mark.parametrize(("owner", "step"), STEPS, ids=names)
async def test_any_step_may_fail(owner: Any, step: str, remains: Remains, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = VM(full("s"))

    async def live() -> None:
        async with vm:
            await vm.start()

    with monkeypatch.context() as patch:
        nothing_prepared(patch)
        patch.setattr(owner, step, refuse)
        with pytest.raises(HostError, match="doing that"):
            await live()
    assert vm.status is not None
    assert vm.status.reason is ExitReason.ERROR
    assert "doing that" in vm.status.detail
    await remains.check()


LIMITS: list[tuple[BaseException, int, str]] = [
    (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE, "ulimit -n"),
    (OSError(errno.ENOSPC, "No space left on device", "/some/where"), errno.ENOSPC, "free some space"),
    (MemoryError(), errno.ENOMEM, "less memory"),
    (RuntimeError("can't start new thread"), errno.EAGAIN, "pids.max"),
    (RuntimeError("can't allocate read lock"), errno.ENOMEM, "less memory"),
    (SystemError("error return without exception set"), errno.ENOMEM, "less memory"),
    (SystemError("<built-in function exec> returned NULL without setting an exception"), errno.ENOMEM, "less memory"),
    (ImportError("libcrypto.so.3: failed to map segment from shared object"), errno.ENOMEM, "less memory"),
    (ImportError("resource.so: cannot create shared object descriptor"), errno.ENOMEM, "less memory"),
    (ImportError("_ssl.so: cannot open shared object file: Too many open files"), errno.EMFILE, "ulimit -n"),
]


def test_a_module_that_is_not_there_is_no_limit() -> None:
    missing = ImportError("cannot import name 'sha512' from 'hashlib'")
    assert host_error("starting", missing) is None
    missing.__context__ = ImportError("libcrypto.so.3: failed to map segment from shared object")
    limit = host_error("starting", missing)
    assert limit is not None
    assert limit.errno == errno.ENOMEM


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_where_no_descriptor_is_left_nothing_else_is_the_remedy(number: int) -> None:
    assert "open files" in HostError("asking", number, "start a guest first").hint
    assert HostError("asking", errno.ENOENT, "start a guest first").hint == "start a guest first"


MEETING: list[tuple[Any, str]] = [(GuestMemory, "create"), (Vcpu, "start"), (VcpuState, "set_packed_cpuid")]


@pytest.mark.parametrize("step", MEETING, ids=lambda s: str(s[1]))
@pytest.mark.parametrize(("met", "number", "remedy"), LIMITS, ids=lambda v: type(v).__name__)
async def test_a_limit_that_is_met_is_a_host_error_with_its_remedy(
    step: tuple[Any, str], met: BaseException, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meets_it(*_args: object, **_kwargs: object) -> None:
        raise met

    vm = VM(full("s"))

    async def live() -> None:
        async with vm:
            await vm.start()

    with monkeypatch.context() as patch:
        patch.setattr(*step, meets_it)
        with pytest.raises(HostError, match=remedy) as caught:
            await live()
    assert caught.value.errno == number
    assert caught.value.__cause__ is met
    assert "VM 'guest'" in str(caught.value)
    assert vm.status is not None
    assert vm.status.error is caught.value


@pytest.mark.parametrize("step", MEETING, ids=lambda s: str(s[1]))
@pytest.mark.parametrize(("met", "number", "remedy"), LIMITS, ids=lambda v: type(v).__name__)
async def test_so_is_one_that_a_reset_meets(
    step: tuple[Any, str], met: BaseException, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meets_it(*_args: object, **_kwargs: object) -> None:
        raise met

    async with VM(full("er", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        with monkeypatch.context() as patch:
            patch.setattr(*step, meets_it)
            vm.serial.write(b"q")
            status = await asyncio.wait_for(vm.wait(), HANGS)
    assert status.reason is ExitReason.ERROR
    assert isinstance(status.error, HostError)
    assert status.error.errno == number
    assert status.error.__cause__ is met
    assert "could not be reset: resetting VM 'guest'" in status.detail
    assert remedy in status.detail


async def test_the_second_vcpu_cannot_start(remains: Remains, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Vcpu.start
    monkeypatch.setattr(
        Vcpu, "start", lambda self, nice, core: start(self, nice, core=core) if self.index == 0 else refuse()
    )
    async with VM(full("s")) as vm:
        with pytest.raises(HostError):
            await vm.start()
        assert vm.state is VMState.STOPPED
    await remains.check()


@pytest.mark.parametrize(("owner", "step"), [s for s in STEPS if s[1] not in ("load_kernel", "open")])
async def test_any_step_of_a_reset_may_fail(
    owner: Any, step: str, remains: Remains, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with VM(full("er", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        with monkeypatch.context() as patch:
            nothing_prepared(patch)
            patch.setattr(owner, step, refuse)
            vm.serial.write(b"q")
            status = await asyncio.wait_for(vm.wait(), HANGS)
        assert status.reason is ExitReason.ERROR
        assert "could not be reset" in status.detail
        assert isinstance(status.error, HostError)
    await remains.check()


async def test_an_error_of_ours_ends_the_vm_and_nobody_waits_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with VM(full("er", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        with monkeypatch.context() as patch:
            patch.setattr(x86_64, "setup_linux", lambda *_: 1 / 0)
            vm.serial.write(b"q")
            status = await asyncio.wait_for(vm.wait(), HANGS)
        assert isinstance(status.error, ZeroDivisionError)


async def test_a_hundred_resets_in_one_vm(remains: Remains) -> None:
    async with VM(full("r", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED, 3)
        running = Remains.now()
        await event(vm, EventKind.REBOOTED, 103, timeout=50)
        await vm.pause()
        assert Remains.now().mappings <= running.mappings + 40
        assert len(Remains.now().fds) <= len(running.fds) + 30  # whichever of the two caught it between two machines
    await remains.check()
