"""Guests that are saved while they write to their disk and read it back, send over TCP and vsock, and print: they go on with
all of it, here and where they are restored, in this process and in another.

A guest that goes on from a snapshot needs its disk as it was then. So it is paused before: the disk is copied while nothing new
can come, and what was under way in the snapshot is done again there. The one that is saved while it runs goes on itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, DiskConfig, NetConfig, PayloadConfig, VMConfig, VsockConfig
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, Guests
from tests.system.guest import prompt, shell
from tests.system.programs import program

HOST, GUEST = "10.9.0.1", "10.9.0.2"
NET = NetConfig(ip=HOST, mask="255.255.255.0")
ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
NUMBERS = "i=0; while :; do i=$((i+1)); echo n$i; usleep 10000; done"
FIO = (
    "fio --name=load --filename=/dev/vda --size=32M --rw=randwrite --bs=4k --direct=1 --ioengine=psync "
    "--verify=crc32c --verify_backlog=32 --verify_fatal=1 --time_based --runtime=36000 --eta=never --output=/tmp/fio"
)
TROUBLE = "soft lockup|stall|I/O error|BUG:|Call Trace|hung task"
LIMIT = 60.0


class Host:
    """What the guests send is received here and looked at."""

    def __init__(self) -> None:
        self.port = 0
        self.numbers = 0
        """Received over TCP, all of them in their order."""
        self.streams = 0
        """Received over vsock."""
        self.wrong: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Numbers, a line each, from 1 on in each connection."""
        self._writers.append(writer)
        expected = 1
        try:
            while line := await reader.readline():
                if line.endswith(b"\n") and line != b"n%d\n" % expected:
                    self.wrong.append(f"TCP: {line!r}, not {expected}")
                expected += 1
                self.numbers += 1
        except ConnectionError:
            return
        finally:
            writer.close()

    async def sink(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Over vsock: tell what arrived, which the guest compares."""
        total = crc = 0
        try:
            while data := await reader.read(1 << 20):
                crc, total = zlib.crc32(data, crc), total + len(data)
            self.streams += 1
            writer.write(b"%d %08x" % (total, crc))
        except ConnectionError:  # the guest has ended
            return
        finally:
            writer.close()

    def hang_up(self) -> None:
        """All TCP connections: who had them is gone."""
        while self._writers:
            self._writers.pop().transport.abort()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not await condition():
        assert time.monotonic() < deadline, f"{what} does not go on"
        await asyncio.sleep(0.1)


class Loaded:
    """A guest under load, and how far it was seen to be."""

    def __init__(self, vm: VM, host: Host) -> None:
        self.vm = vm
        self._host = host
        self._printed = 0

    async def begin(self) -> None:
        """From its shell."""
        await shell(self.vm, f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up")
        for job in (
            FIO,
            f"sh -c '{NUMBERS}' >/dev/hvc0",
            f"while :; do sh -c '{NUMBERS}' | nc {HOST} {self._host.port}; usleep 100000; done",
            "while :; do vsock connect 2 2000 source 300000 >>/tmp/vsock; usleep 100000; done",
        ):
            await shell(self.vm, f"({job}) </dev/null 2>/dev/null & true")

    async def goes_on(self, *, tcp: bool = True) -> None:
        """Each part of the load does, and nothing is wrong with any."""
        await self._prints()
        written, numbers, streams = await self._written(), self._host.numbers, self._host.streams
        await until(lambda: self._more(written), "the disk")
        await until(lambda: _is(self._host.streams > streams + 1), "vsock")
        if tcp:
            await until(lambda: _is(self._host.numbers > numbers + 20), "TCP")
        assert not self._host.wrong
        await self._is_well()

    async def _prints(self) -> None:
        """Lines one after the other; the first may be the end of one."""
        for _ in range(20):
            line = await asyncio.wait_for(self.vm.console.readline(), LIMIT)
            number = re.fullmatch(rb"n(\d+)\r?\n", line)
            if number is None:
                assert not self._printed, f"a line is {line!r} after {self._printed}"
                continue
            assert self._printed in (0, int(number[1]) - 1), "no line is lost, and none comes twice"
            self._printed = int(number[1])

    async def _written(self) -> int:
        return int((await shell(self.vm, "cat /sys/block/vda/stat")).split()[4])

    async def _more(self, than: int) -> bool:
        return await self._written() > than + 32

    async def _is_well(self) -> None:
        assert await shell(self.vm, "pidof fio") != ""
        assert await shell(self.vm, "grep -E 'verify|err|fio:' /tmp/fio || true") == "", "it has found something wrong"
        for line in (await shell(self.vm, "cat /tmp/vsock")).splitlines():
            words = line.split()
            assert len(words) < 4 or words[:2] == words[2:4], line  # fewer: it was cut off with its connection
        before = time.time()
        now = int(await shell(self.vm, "date +%s"))
        assert before - 2 <= now <= time.time() + 2, "its wall clock is right"
        up = float((await shell(self.vm, "cat /proc/uptime")).split()[0])
        await shell(self.vm, "sleep 0.2")
        assert float((await shell(self.vm, "cat /proc/uptime")).split()[0]) >= up + 0.2
        assert await shell(self.vm, f"dmesg | grep -E '{TROUBLE}' || true") == ""
        assert int(await shell(self.vm, "grep -c ^processor /proc/cpuinfo")) == 4

    def last_printed(self) -> int:
        """By what has come from its console by now; nothing is taken from it."""
        found = re.findall(rb"n(\d+)\r\n", self.vm.console.history)
        return int(found[-1]) if found else 0


async def _is(value: bool) -> bool:
    return value


def configured(guests: Guests, release: str, folder: Path) -> VMConfig:
    tool = program("vsock")
    if tool is None:
        pytest.skip("no guest program: gcc with libc6-dev is missing where the tests start")
    files = {"/bin/vsock": tool, "/bin/fio": GUESTS / "bin/fio"}
    image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", files=files)
    (folder / "initramfs").write_bytes(image.data)
    (folder / "disk0").write_bytes(bytes(32 * MIB))
    config = guests.config(
        release,
        cpus=4,
        console=ConsoleConfig(),
        vsock=VsockConfig(),
        disks=(DiskConfig(path=folder / "disk0", direct=False),),
        nets=(NET,),
    )
    payload = PayloadConfig(config.payload.kernel, folder / "initramfs", config.payload.cmdline)
    return replace(config, payload=payload)


async def saved(loaded: Loaded, folder: Path, number: int) -> tuple[Path, tuple[int, int]]:
    """A snapshot, and in `disk{number}` the disk that belongs to it; how far it had printed, at least and at most. It runs on."""
    vm = loaded.vm
    taken = await vm.snapshot(folder / "running")
    print(f"round {number}: it stood still for {taken.standstill:.3f} s")
    await loaded.goes_on()
    await vm.pause()
    least = loaded.last_printed()
    await vm.snapshot(folder / "paused")
    printed = least, loaded.last_printed()
    await asyncio.to_thread(shutil.copyfile, folder / f"disk{number - 1}", folder / f"disk{number}")
    await vm.resume()
    await loaded.goes_on()
    return folder / "paused", printed


def disk_of(path: Path) -> dict[str, object]:
    return {"disks": (DiskConfig(path=path, direct=False),)}


async def elsewhere(snapshot: Path, disk: Path) -> None:
    """In a process of its own, while the parent runs: on a network of its own."""
    host = Host()
    async with (
        VM.restore(snapshot, verify=True, overrides={**disk_of(disk), "nets": (NetConfig(),)}) as vm,
        await vm.vsock.listen(2000, host.sink),
    ):
        await vm.resume()
        await Loaded(vm, host).goes_on(tcp=False)
    print("it goes on here")


_ELSEWHERE = """
import sys
from pathlib import Path
import uvloop
from tests.system.test_snapshot_load import elsewhere
uvloop.run(elsewhere(Path(sys.argv[1]), Path(sys.argv[2])))
"""


async def in_another_process(snapshot: Path, disk: Path) -> None:
    await asyncio.to_thread(shutil.copyfile, disk, disk.with_suffix(".other"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _ELSEWHERE, str(snapshot), str(disk.with_suffix(".other"))),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 150)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, said.decode()
    assert b"it goes on here" in said


ROUNDS = [
    pytest.param(3, id="3 rounds", marks=pytest.mark.timeout(1800)),
    pytest.param(20, id="20 rounds", marks=[pytest.mark.timeout(7200)]),
]


@pytest.mark.parametrize("release", ["6.1", "newest"])
@pytest.mark.parametrize("rounds", ROUNDS)
async def test_under_load(guests: Guests, release: str, folder: Path, rounds: int) -> None:
    """Each round: the guest is saved running, and goes on; is saved paused, and goes on; goes on in another process (every third
    round); ends, and goes on in this one from what was saved: a child of a child of it, in the end."""
    host = Host()
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(host.tcp, "0.0.0.0", 0)
        stack.push_async_callback(server.wait_closed)
        stack.callback(host.hang_up)
        stack.callback(server.close)
        host.port = server.sockets[0].getsockname()[1]
        one = await stack.enter_async_context(AsyncExitStack())
        vm = await one.enter_async_context(VM(configured(guests, release, folder)))
        await vm.start()
        await prompt(vm)
        await one.enter_async_context(await vm.vsock.listen(2000, host.sink))
        loaded = Loaded(vm, host)
        await loaded.begin()
        await loaded.goes_on()
        for number in range(1, rounds + 1):
            snapshot, printed = await saved(loaded, folder, number)
            disk = folder / f"disk{number}"
            if number % 3 == 1:
                await in_another_process(snapshot, disk)
                await loaded.goes_on()
            await one.aclose()
            host.hang_up()
            (folder / f"disk{number - 1}").unlink()
            one = await stack.enter_async_context(AsyncExitStack())
            vm = await one.enter_async_context(VM.restore(snapshot, name=f"child{number}", overrides=disk_of(disk)))
            await one.enter_async_context(await vm.vsock.listen(2000, host.sink))
            await vm.resume()
            loaded = Loaded(vm, host)
            await loaded.goes_on()
            first = re.search(rb"n(\d+)\r\n", vm.console.history)
            assert first is not None
            least, most = printed
            assert least < int(first[1]) <= most + 2, "it goes on where it was saved; half a line may have come before"
        await one.aclose()


@pytest.mark.parametrize("release", ["6.1", "newest"])
async def test_a_connection_goes_on_in_the_fork_that_is_given_its_network(
    guests: Guests, release: str, folder: Path
) -> None:
    """And in no other: what a parent has sent is not sent again by all of its children."""
    host = Host()
    async with await asyncio.start_server(host.tcp, "0.0.0.0", 0) as server:
        host.port = server.sockets[0].getsockname()[1]
        async with VM(configured(guests, release, folder)) as vm:
            await vm.start()
            await prompt(vm)
            await shell(vm, f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up")
            await shell(vm, f"(sh -c '{NUMBERS}' | nc {HOST} {host.port}) </dev/null 2>/dev/null & true")
            await until(lambda: _is(host.numbers > 20), "TCP")
            template = await vm.freeze()
        async with template:
            sent = host.numbers  # what was on its way has been read by then, or is lost
            async with template.fork() as one, template.fork() as other:
                for child in (one, other):
                    await child.resume()
                await asyncio.gather(*(shell(child, "sleep 3; pidof nc") for child in (one, other)))
            assert host.numbers <= sent + 20, "a buffer at most, and nothing after it"
            sent = host.numbers
            async with template.fork(nets=(NET,)) as child:
                await child.resume()
                await until(lambda: _is(host.numbers > sent + 50), "TCP")
            assert not host.wrong, "nothing is missing, and nothing twice"
        host.hang_up()


@pytest.mark.parametrize("release", ["6.1", "newest"])
async def test_eight_forks_at_once_have_a_disk_each(guests: Guests, release: str, folder: Path) -> None:
    """All of them read what their parent had written, and write and verify over it, at the same time."""
    config = replace(configured(guests, release, folder), nets=())
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null")
        digest = await _first_half(vm)
        template = await vm.freeze()
    before = await asyncio.to_thread(_sum, folder / "disk0")

    async def work(child: VM, number: int) -> None:
        await child.resume()
        assert await _first_half(child) == digest
        await shell(child, f"{FIO.split('--verify_fatal')[0]} --offset=4M --size=1M --output=/tmp/fio", timeout=200)
        await shell(child, f"yes {number} | head -c 1048576 | dd of=/dev/vda bs=64k conv=fsync 2>/dev/null; sync")
        await shell(child, "echo 3 >/proc/sys/vm/drop_caches")
        said = await shell(child, f"head -c 1048576 /dev/vda | sha256sum; yes {number} | head -c 1048576 | sha256sum")
        assert len({line.split()[0] for line in said.splitlines()}) == 1

    async with template, AsyncExitStack() as stack:
        children = [await stack.enter_async_context(template.fork(vsock_cid=100 + i)) for i in range(8)]
        await asyncio.gather(*(work(child, number) for number, child in enumerate(children)))
    assert await asyncio.to_thread(_sum, folder / "disk0") == before, "what forks write is theirs"


async def _first_half(vm: VM) -> str:
    return (await shell(vm, "head -c 4194304 /dev/vda | sha256sum")).split()[0]


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
