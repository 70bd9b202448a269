"""Increments of guests that run: what the guest writes, and what devices write for it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConfigError,
    DiskConfig,
    EventKind,
    HostError,
    MemoryConfig,
    RebootPolicy,
    RngConfig,
    SnapshotError,
    VMState,
)
from aiovmm.snapshot.chain import open_chain
from aiovmm.snapshot.template import Template
from tests.vm.drivers import start_drivers
from tests.vm.guest import config, counter, counts_on, event

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm_there", "writes_are_known")]
RING, BUFFER, PAGE = 0x100000, 0x200000, 4096


def has(path: Path, address: int) -> bool:
    """Whether the increment at `path` has the page at `address`."""
    chain = open_chain(path)
    try:
        return bool(chain.increments[0].changed[address // PAGE // 8] >> address // PAGE % 8 & 1)
    finally:
        chain.close()


@pytest.mark.parametrize("cpus", [1, 3])
async def test_a_guest_that_runs_goes_on_from_each(tmp_path: Path, cpus: int) -> None:
    seen = []
    async with VM(config("s" if cpus == 1 else "a3s", cpus)) as vm:
        await vm.start()
        await counts_on(vm)
        whole = await vm.snapshot(tmp_path / "0", track=True)
        for number in range(1, 4):
            seen.append(counter(vm))
            await counts_on(vm)
            increment = await vm.snapshot(tmp_path / f"{number}", base=tmp_path / f"{number - 1}")
            assert vm.state is VMState.RUNNING
            assert 0 < increment.pages < whole.pages
            assert (whole.base, increment.base) == (None, tmp_path / f"{number - 1}")
    for number, least in enumerate(seen, 1):
        async with VM.restore(tmp_path / f"{number}", verify=True, prefault=number == 2) as again:
            assert counter(again) >= least
            await again.resume()
            await counts_on(again)
    async with VM.restore(tmp_path / "0") as again:
        assert counter(again) <= seen[0]


@pytest.mark.parametrize("direct", [False, True])
async def test_what_a_disk_writes_into_memory_alone_is_in_it(tmp_path: Path, direct: bool) -> None:
    """The guest is halted: its disk reads into a page of memory, by io_uring."""
    (tmp_path / "disk").write_bytes(b"content!" * (1 << 17))
    devices: dict[str, Any] = {"disks": (DiskConfig(path=tmp_path / "disk", direct=direct),), "rng": RngConfig()}
    async with VM(config("i", **devices)) as vm:
        await vm.start()
        vm.machine.memory.write(RING, b"x" * 0x80000)  # all of it is there
        drivers = await start_drivers(vm, RING)
        (disk,) = (driver for name, driver in drivers.items() if name.startswith("disk"))
        await vm.snapshot(tmp_path / "0", track=True)
        await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
        await disk.request(0, [struct.pack("<IIQ", 0, 0, 0)], [8 * PAGE, 1])
        begins = bytes(vm.machine.memory.slice(0, 4 << 20)).index(b"content!" * PAGE)
        inside = range(begins // PAGE + 1, begins // PAGE + 8)  # no ring is in these pages
        await vm.snapshot(tmp_path / "2", base=tmp_path / "1")
        assert not any(has(tmp_path / "1", page * PAGE) for page in inside)
        assert all(has(tmp_path / "2", page * PAGE) for page in inside)
    async with VM.restore(tmp_path / "2") as again:
        assert again.machine.memory.read(begins, 8 * PAGE) == b"content!" * PAGE


async def test_a_restored_guest_and_a_fork_go_on_with_the_chain(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "0", track=True)
        await counts_on(vm)
        await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
    async with VM.restore(tmp_path / "1") as again:
        await again.resume()
        await counts_on(again)
        await again.snapshot(tmp_path / "2", base=tmp_path / "1")
        await counts_on(again)
        assert (await again.snapshot(tmp_path / "3", base=tmp_path / "2")).pages > 0
    async with await Template.open(tmp_path / "3") as template, template.fork() as one, template.fork() as other:
        for child in (one, other):
            await child.resume()
            await counts_on(child)
        await one.snapshot(tmp_path / "4", base=tmp_path / "3")
        seen = counter(one)
        await counts_on(other)
    async with VM.restore(tmp_path / "4", verify=True) as last:
        assert 0 < counter(last) <= seen
        await last.resume()
        await counts_on(last)


async def test_what_it_cannot_be(tmp_path: Path) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "0")
        with pytest.raises(SnapshotError, match="it is not known what the guest has written"):
            await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
        with pytest.raises(ConfigError, match="is no path of a directory"):
            await vm.snapshot(tmp_path / "1", base=5)  # type: ignore[arg-type]
        for path in ("", b"", "a\0b"):
            with pytest.raises(ConfigError, match="is no path of a directory"):
                await vm.snapshot(path)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="is no path of a directory"):
                async with VM.restore(path):  # type: ignore[arg-type]
                    pass
        with pytest.raises(HostError, match="No such file"):
            await vm.snapshot(tmp_path / "1", base=tmp_path / "none")
        assert not (tmp_path / "1").exists()
        await counts_on(vm)
    async with VM(config("s", memory=MemoryConfig(4 << 20, shared=True))) as vm:
        await vm.start()
        with pytest.raises(SnapshotError, match="needs private memory"):
            await vm.snapshot(tmp_path / "1", track=True)
        assert not (tmp_path / "1").exists()
        await counts_on(vm)


async def test_one_that_could_not_be_written_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found by then is in the next."""
    async with VM(config("i")) as vm:
        await vm.start()
        await vm.snapshot(tmp_path / "0", track=True)
        vm.machine.memory.write(BUFFER, b"written")
        with monkeypatch.context() as patch:
            patch.setattr("aiovmm.snapshot.directory.encode", lambda _: bytes(65 << 20))
            with pytest.raises(SnapshotError, match="no snapshot may have more"):
                await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
        await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
        assert has(tmp_path / "1", BUFFER)
    async with VM.restore(tmp_path / "1") as again:
        assert again.machine.memory.read(BUFFER, 7) == b"written"


async def test_after_a_reset_its_memory_is_another(tmp_path: Path) -> None:
    async with VM(config("her", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await vm.serial.expect(rb"hello")
        await vm.snapshot(tmp_path / "0", track=True)
        await vm.serial.send(b"q")
        await event(vm, EventKind.REBOOTED)
        await vm.serial.expect(rb"hello")
        with pytest.raises(SnapshotError, match="it is not known what the guest has written"):
            await vm.snapshot(tmp_path / "1", base=tmp_path / "0")
        await vm.snapshot(tmp_path / "1", track=True)
        await vm.snapshot(tmp_path / "2", base=tmp_path / "1")
