"""virtio-pmem under the drivers of stock kernels: DAX, what survives, booting from it, and one image for many guests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from aiovmm import VM, EventKind, ExitReason, PmemConfig, RebootPolicy
from aiovmm.devices.virtio.pmem import PmemDevice
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import BOOT, PROMPT, ended, limit, prompt, reboot, shell
from tests.system.shown import CONSOLE, with_dax

MIB = 1 << 20


def ext4(path: Path, size: int, content: Path | None = None) -> Path:
    """An ext4 file system in a file of `size` MiB; blocks of a page, as DAX needs them."""
    with path.open("wb") as file:
        file.truncate(size * MIB)
    source: list[str | Path] = ["-d", content] if content is not None else []
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", *source, path], check=True)
    return path


def extract(image: Path, name: str, to: Path) -> bytes:
    """A file out of an image, after replaying the journal and a check of the file system, which must be clean."""
    subprocess.run(["e2fsck", "-p", "-E", "journal_only", image], check=True, capture_output=True)
    subprocess.run(["e2fsck", "-f", "-n", image], check=True, capture_output=True)
    subprocess.run(["debugfs", "-R", f"dump {name} {to}", image], check=True, capture_output=True)
    return to.read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def power_off(vm: VM) -> None:
    vm.serial.write(b"poweroff\n")
    status = await ended(vm)
    assert status.reason is ExitReason.SHUTDOWN


@pytest.mark.parametrize("release", RELEASES)
async def test_ext4_with_dax_keeps_its_files_over_reboots_and_in_the_host(
    guests: Guests, release: str, tmp_path: Path
) -> None:
    image = await asyncio.to_thread(ext4, tmp_path / "pmem.img", 64)
    other = await asyncio.to_thread(ext4, tmp_path / "other.img", 2)
    config = guests.config(
        with_dax(release), pmems=(PmemConfig(file=image), PmemConfig(file=other)), on_reboot=RebootPolicy.RESTART
    )
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        iomem = await shell(vm, "grep namespace /proc/iomem")
        assert len(re.findall(r"namespace\d\.0", iomem)) == 2, iomem
        assert sum(int(s) for s in (await shell(vm, "cat /sys/block/pmem*/size")).split()) == 66 * MIB // 512
        await shell(vm, "mount -t ext4 -o dax=always /dev/pmem0 /mnt")
        assert "dax=always" in await shell(vm, "grep /mnt /proc/mounts")  # refused where there is no DAX
        assert await shell(vm, "cat /sys/block/pmem0/queue/dax") == "1\n"
        written = await shell(
            vm, "dd if=/dev/urandom of=/mnt/x bs=64k count=64 conv=fsync 2>/dev/null; sha256sum </mnt/x"
        )
        await shell(vm, "umount /mnt")
        for _ in range(2):
            await shell(vm, "modprobe -r virtio_pmem nd_pmem; modprobe -a virtio_pmem nd_pmem; test -b /dev/pmem0")
        log = await shell(vm, "dmesg | grep -v fpu__init_system_xstate")
        assert not re.search(r"WARNING|BUG|Oops", log), log
        device = vm.device("pmem0")
        assert isinstance(device, PmemDevice)
        assert device.flushes > 0
        await reboot(vm, b"reboot")
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)
        await prompt(vm)
        assert await shell(vm, "grep namespace /proc/iomem") == iomem
        await shell(vm, "mount -t ext4 -o dax=always /dev/pmem0 /mnt")
        assert await shell(vm, "sha256sum </mnt/x") == written
        await shell(vm, "umount /mnt")
        await power_off(vm)
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]
    found = await asyncio.to_thread(extract, image, "x", tmp_path / "x")
    assert sha256(found) == written.split()[0]
    assert len(found) == 4 * MIB


MONITOR = """
import asyncio, pathlib, re, sys
from aiovmm import VM, VMConfig, PayloadConfig, PmemConfig, MemoryConfig
from tests.system.guest import limit
kernel, initramfs, image = map(pathlib.Path, sys.argv[2:])
run = "mount -t ext4 -o dax=always /dev/pmem0 /mnt; dd if=/dev/urandom of=/mnt/x bs=64k count=64 conv=fsync; sha256sum /mnt/x"
async def main():
    cmdline = f'console={sys.argv[1]} panic=-1 quiet aiovmm.then=shell aiovmm.run="{run}; sleep 1000"'
    config = VMConfig(PayloadConfig(kernel, initramfs, cmdline), memory=MemoryConfig(256 << 20), pmems=(PmemConfig(file=image),))
    async with VM(config) as vm:
        await vm.start()
        await vm.serial.expect(rb"([0-9a-f]{64})  /mnt/x", timeout=limit(120))
        print(re.search(rb"([0-9a-f]{64})  /mnt/x", vm.serial.history).group(1).decode(), flush=True)
        await vm.wait()
asyncio.run(main())
"""


async def test_what_was_synced_survives_the_death_of_the_monitor(initramfs: dict[str, Path], tmp_path: Path) -> None:
    image = await asyncio.to_thread(ext4, tmp_path / "pmem.img", 64)
    release = with_dax("6.1")
    arguments = map(str, (CONSOLE, GUESTS / release / "vmlinuz", initramfs[release], image))
    monitor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MONITOR, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert monitor.stdout is not None
        line = await asyncio.wait_for(monitor.stdout.readline(), limit(150))
        assert line, "it has told what it wrote"
    finally:
        with suppress(ProcessLookupError):
            monitor.kill()
        status = await monitor.wait()
    assert status == -9
    found = await asyncio.to_thread(extract, image, "x", tmp_path / "x")
    assert len(found) == 4 * MIB
    assert sha256(found) == line.decode().strip()


def root_tree(at: Path) -> Path:
    for directory in ("bin", "dev", "proc", "sys", "run", "tmp"):
        (at / directory).mkdir(parents=True)
    (at / "bin/busybox").write_bytes((GUESTS / "bin/busybox").read_bytes())
    (at / "bin/busybox").chmod(0o755)
    (at / "bin/sh").symlink_to("busybox")
    script = "#!/bin/sh\nb=/bin/busybox\n$b grep ' / ' /proc/mounts\necho written >/file\n$b sync\n$b poweroff -f\n"
    (at / "init").write_text(script)
    (at / "init").chmod(0o755)
    return at


@pytest.mark.parametrize("discard", [False, True], ids=["shared", "discard_writes"])
async def test_the_root_file_system_is_on_pmem(guests: Guests, tmp_path: Path, discard: bool) -> None:
    tree = await asyncio.to_thread(root_tree, tmp_path / "tree")
    image = await asyncio.to_thread(ext4, tmp_path / "root.img", 32, tree)
    if discard:
        image.chmod(0o400)
    before = await asyncio.to_thread(image.read_bytes)
    config = guests.config(
        with_dax("6.1"),
        cmdline=f"console={CONSOLE} panic=-1 quiet root=/dev/pmem0 rootfstype=ext4 rootflags=dax=always init=/init",
        pmems=(PmemConfig(file=image, discard_writes=discard),),
    )
    async with VM(config) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), BOOT)
        output = bytes(vm.serial.history).decode()
    assert status.reason is ExitReason.SHUTDOWN
    assert re.search(r"/dev/pmem0 / ext4 rw,.*dax=always", output)
    if discard:
        assert await asyncio.to_thread(image.read_bytes) == before
    else:
        assert await asyncio.to_thread(extract, image, "file", tmp_path / "out") == b"written\n"


def mappings(path: Path) -> list[dict[str, int]]:
    """What /proc/self/smaps says of each mapping of `path`, in KiB."""
    found: list[dict[str, int]] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
            if inside:
                found.append({})
        elif inside and (field := re.match(r"(\w+): +(\d+) kB", line)):
            found[-1][field[1]] = int(field[2])
    return found


async def test_eight_guests_of_one_image_share_the_pages_of_the_host(guests: Guests, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    data = random.Random(1).randbytes(24 * MIB)
    await asyncio.to_thread((tree / "data").write_bytes, data)
    image = await asyncio.to_thread(ext4, tmp_path / "shared.img", 32, tree)
    image.chmod(0o400)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    run = "mount -t ext4 -o ro,dax=always /dev/pmem0 /mnt; md5sum /mnt/data"
    config = guests.config(
        with_dax("6.1"),
        memory=128,
        cmdline=f'console={CONSOLE} panic=-1 quiet aiovmm.then=shell aiovmm.run="{run}"',
        pmems=(PmemConfig(file=image, discard_writes=True),),
    )
    async with AsyncExitStack() as stack:
        vms = [await stack.enter_async_context(VM(config.with_changes({"name": f"guest{i}"}))) for i in range(8)]
        for vm in vms:
            await vm.start()
        await asyncio.gather(*(vm.serial.expect(f"{digest}  /mnt/data".encode(), timeout=limit(200)) for vm in vms))
        await asyncio.gather(*(vm.serial.expect(PROMPT, timeout=limit(60)) for vm in vms))
        seen = mappings(image)
    assert len(seen) == 8
    print(
        f"{len(seen)} mappings: {sum(m['Rss'] for m in seen)} KiB resident, {sum(m['Pss'] for m in seen)} KiB of memory"
    )
    assert all(m["Rss"] >= 24 << 10 for m in seen)  # every guest has read it all
    assert sum(m["Pss"] for m in seen) <= 32 << 10  # and it is in memory once
    assert sum(m["Anonymous"] for m in seen) <= 8 * 64  # but for what mounting wrote
    assert os.stat(image).st_size == 32 * MIB
