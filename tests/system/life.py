"""One life of a guest with work for each device: from a snapshot, until it is saved again and goes no further.

Here, or as a process of its own: `python -m tests.system.life SOURCE TARGET CONSOLE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aiovmm import VM, ConsoleConfig, DiskConfig, NetConfig, VMConfig, VsockConfig
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, Guests
from tests.system.guest import limit, prompt, shell
from tests.system.programs import program
from tests.system.shown import KEEPS_TIME
from tests.system.traffic import sink

VSOCK_PORT = 2000
FIO = (
    "fio --name=v --filename=/dev/vda --size=1M --numjobs=4 --offset_increment=1M --thread --rw=randwrite --bs=4k --direct=1"
    " --ioengine=psync --verify=crc32c --verify_fatal=1"
)
LIMIT = limit(120.0)


@dataclass(frozen=True)
class Done:
    """What the guest has done since it was booted."""

    verified: int
    """Times that all of the disk was written and read again."""
    sent: int
    """Streams over vsock that the host got as they were sent."""
    cut: int
    """Streams that ended before there was an answer, as each does that the guest is saved with."""
    uptime: float


def host_and_guest(subnet: int) -> tuple[str, str]:
    """The addresses of both ends of a network."""
    return f"10.9.{subnet}.1", f"10.9.{subnet}.2"


def initramfs(guests: Guests, release: str, folder: Path) -> Path:
    """With the programs that the work needs, in `folder`."""
    tool = program("vsock")
    assert tool is not None, "tests/system/programs are compiled where the tests start"
    files = {"/bin/vsock": tool, "/bin/fio": GUESTS / "bin/fio"}
    image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", files=files)
    (folder / "initramfs").write_bytes(image.data)
    return folder / "initramfs"


def configured(
    guests: Guests, release: str, image: Path, disk: Path, *, subnet: int = 1, **changes: object
) -> VMConfig:
    """A guest with all devices; `disk` is made."""
    disk.touch()
    os.truncate(disk, 16 << 20)
    config = guests.config(
        release,
        features=KEEPS_TIME,
        console=ConsoleConfig(),
        vsock=VsockConfig(),
        disks=(DiskConfig(path=disk, direct=False),),
        nets=(NetConfig(ip=host_and_guest(subnet)[0], mask="255.255.255.0"),),
        **changes,  # type: ignore[arg-type]
    )
    return replace(config, payload=replace(config.payload, initramfs=image))


async def work(vm: VM, tcp_port: int) -> None:
    """Let the guest begin."""
    host, guest = host_and_guest(1)
    numbers = "i=0; while :; do i=$((i+1)); echo n$i; usleep 5000; done"
    await shell(vm, f"ip address add {guest}/24 dev eth0; ip link set eth0 up")
    await shell(vm, f"(sh -c '{numbers}' | nc {host} {tcp_port}) </dev/null 2>/dev/null & true")
    disk = f"while {FIO} >/tmp/fio 2>&1; do echo >>/tmp/verified; done; mv /tmp/fio /tmp/failed"
    streams = f"vsock connect 2 {VSOCK_PORT} source 262144 >>/tmp/sent 2>/dev/null || sleep 0.1"
    for loop in (disk, f"while :; do {streams}; done", f"sh -c '{numbers}' >/dev/hvc0"):
        await shell(vm, f"({loop}) & true")


async def done(vm: VM) -> Done:
    assert "failed" not in await shell(vm, "ls /tmp"), await shell(vm, "cat /tmp/failed")
    counts = "awk 'NF < 6 {cut++; next} $1 == $3 && $2 == $4 {sent++; next} {wrong++} END {print +sent, +cut, +wrong}' /tmp/sent"
    said = await shell(vm, f"touch /tmp/verified /tmp/sent; wc -l </tmp/verified; {counts}; cat /proc/uptime; date +%s")
    verified, sent, cut, wrong, uptime, _idle, date = said.split()
    assert wrong == "0", await shell(vm, "tail -n 20 /tmp/sent")
    assert not KEEPS_TIME or abs(int(date) - time.time()) < 3, "its wall clock is right"
    return Done(int(verified), int(sent), int(cut), float(uptime))


async def more(vm: VM, before: Done) -> Done:
    """Wait until each of it goes on."""
    deadline = time.monotonic() + LIMIT
    while True:
        now = await done(vm)
        if now.verified > before.verified and now.sent > before.sent and now.uptime > before.uptime:
            return now
        assert time.monotonic() < deadline, f"from {before} to {now}"
        await asyncio.sleep(0.1)


async def live(vm: VM, target: Path, base: Path | None = None, begin: int | None = None) -> tuple[Done, bytes]:
    """Work, for the first time with a connection to the TCP port `begin`, and be saved. What it did, and wrote to hvc0."""
    console = bytearray()
    listening = asyncio.create_task(listen(vm, console))
    async with await vm.vsock.listen(VSOCK_PORT, sink):
        if begin is None:
            await vm.resume()
            await shell(vm, "true")
        else:
            await vm.start()
            await prompt(vm)
            await work(vm, begin)
        now = await more(vm, await done(vm))
        await vm.pause()
        await vm.snapshot(target, base=base)
    await vm.kill()
    await listening
    return now, bytes(console)


async def listen(vm: VM, console: bytearray) -> None:
    """Take in what the guest writes to hvc0, to its end."""
    while data := await vm.console.read(1 << 16):
        console.extend(data)


def numbers(console: bytes) -> list[int]:
    """Those in what a guest has written to hvc0."""
    return [int(found) for found in re.findall(rb"n(\d+)\r?\n", console)]


class Received:
    """The numbers of one TCP connection, each once and in order."""

    def __init__(self) -> None:
        self.last = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while (line := await reader.readline()).endswith(b"\n"):
            assert line == b"n%d\n" % (self.last + 1)
            self.last += 1
        writer.close()

    def close(self) -> None:
        """The connection of a guest that is gone, which says no goodbye."""
        for writer in self._writers:
            writer.transport.abort()

    async def goes_on(self) -> None:
        """Also after a while in which the other side heard nothing, and waits before it tries again."""
        seen, deadline = self.last, time.monotonic() + LIMIT
        while self.last < seen + 20:
            assert time.monotonic() < deadline, f"TCP stands still after {seen} lines"
            await asyncio.sleep(0.05)


async def _main(source: str, target: str, console: str, increment: str) -> None:
    async with VM.restore(source, verify=True) as vm:
        now, written = await live(vm, Path(target), Path(source) if increment else None)
    await asyncio.to_thread(Path(console).write_bytes, written)
    print(json.dumps(asdict(now)))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
