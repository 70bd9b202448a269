"""vhost-user under stock Linux drivers, with back ends that nobody here wrote (QEMU's storage daemon, Debian's virtiofsd) and
with our own in other processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, DiskConfig, Event, EventKind, ExitReason, FsConfig, NetConfig, RebootPolicy
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.net.configured import make_net
from aiovmm.devices.virtio.vhost_user import VhostUserDevice
from aiovmm.events import Subscription
from aiovmm.testing.vhost_user_backend import VhostUserServer
from aiovmm.vhost_user import VhostUserBackend
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.daemon import PROJECT, Daemon, until
from tests.system.guest import ended, limit, prompt, shell

MB = 1 << 20
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")


def storage_daemon(image: Path, path: Path, queues: int = 1) -> Daemon:
    export = f"type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues={queues},addr.type=unix,addr.path={path}"
    blockdev = f"driver=file,filename={image},node-name=disk"
    return Daemon(["qemu-storage-daemon", "--blockdev", blockdev, "--export", export], path)


def our_daemon(image: Path, path: Path) -> Daemon:
    return Daemon([sys.executable, "-m", "tests.vhost_user.daemon", path, image, "0.002"], path)


def ext4(path: Path, size: int, root: Path | None = None) -> Path:
    path.touch()
    os.truncate(path, size)
    contents = [] if root is None else ["-d", str(root)]
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *contents, str(path)], check=True, timeout=60)
    return path


def check_clean(image: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def replay_journal(image: Path) -> None:
    """What a kernel does at the next mount."""
    subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, timeout=60, check=False)


def same_trees(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", str(one), str(other)], check=False, timeout=60).returncode == 0


def md5_inside(image: Path, name: str, out: Path) -> str:
    subprocess.run(["debugfs", "-R", f"dump /{name} {out}", str(image)], check=True, capture_output=True, timeout=60)
    return hashlib.md5(out.read_bytes()).hexdigest()


async def power_off(vm: VM) -> None:
    vm.serial.write(b"poweroff\n")
    assert (await ended(vm)).reason is ExitReason.SHUTDOWN


@pytest.mark.parametrize("release", RELEASES)
async def test_a_disk_of_qemus_storage_daemon(guests: Guests, folder: Path, release: str) -> None:
    root = folder / "root"
    root.mkdir()
    (root / "of_host").write_bytes(os.urandom(4 * MB))
    image = ext4(folder / "disk.img", 96 * MB, root)
    path = folder / "qsd.sock"
    disk = DiskConfig(vhost_user=True, socket=path, num_queues=2)
    config = guests.config(release, cpus=2, disks=(disk,), on_reboot=RebootPolicy.RESTART)
    async with storage_daemon(image, path, queues=2), VM(config) as vm:
        events = vm.events()
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "cat /sys/block/vda/size; ls /sys/block/vda/mq | wc -l")).split() == ["196608", "2"]
        await shell(vm, "mkdir -p /mnt; mount /dev/vda /mnt")
        digest = (await shell(vm, "md5sum </mnt/of_host")).split()[0]
        assert digest == hashlib.md5((root / "of_host").read_bytes()).hexdigest()
        await shell(
            vm, "head -c 33554432 /dev/urandom >/mnt/of_guest; sync; echo 3 >/proc/sys/vm/drop_caches", timeout=120
        )
        digest = (await shell(vm, "md5sum </mnt/of_guest", timeout=120)).split()[0]
        await shell(vm, "umount /mnt")
        # the driver lets go and comes back; then the whole machine does, on the same connection
        await shell(vm, "if grep -q ^virtio_blk /proc/modules; then modprobe -r virtio_blk; modprobe virtio_blk; fi")
        vm.serial.write(b"reboot -f\n")
        await event_of(events, EventKind.REBOOTED)
        await prompt(vm)
        await shell(vm, "mkdir -p /mnt; mount /dev/vda /mnt")
        assert (await shell(vm, "md5sum </mnt/of_guest")).split()[0] == digest
        await shell(vm, "umount /mnt")
        await power_off(vm)
    check_clean(image)
    assert md5_inside(image, "of_guest", folder / "out") == digest


async def test_the_guest_makes_a_file_system_on_the_storage_daemons_disk(
    guests: Guests, with_mke2fs: dict[str, Path], folder: Path
) -> None:
    image, path = folder / "disk.img", folder / "qsd.sock"
    image.touch()
    os.truncate(image, 64 * MB)
    config = guests.config(disks=(DiskConfig(vhost_user=True, socket=path),))
    config = replace(config, payload=replace(config.payload, initramfs=with_mke2fs["6.1"]))
    async with storage_daemon(image, path), VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "mkfs.ext4 -q /dev/vda; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt")
        await shell(vm, "head -c 8388608 /dev/urandom >/mnt/of_guest; sync; echo 3 >/proc/sys/vm/drop_caches")
        digest = (await shell(vm, "md5sum </mnt/of_guest")).split()[0]
        await shell(vm, "umount /mnt")
        await power_off(vm)
    check_clean(image)
    assert md5_inside(image, "of_guest", folder / "out") == digest


def vhost_user(vm: VM, id_: str) -> VhostUserBackend:
    device = vm.device(id_)
    assert isinstance(device, VhostUserDevice)
    assert device.backend is not None
    return device.backend


async def event_of(events: Subscription[Event], kind: EventKind, detail: str = "", timeout: float = 60.0) -> Event:
    """The next of that kind with `detail` in what it tells: of a back end that goes away is told before what comes of it."""
    async with asyncio.timeout(limit(timeout)):
        async for event in events:
            if event.kind is kind and detail in event.detail:
                return event
    raise AssertionError(f"the VM ended without {kind}")


async def test_the_storage_daemon_killed_and_started_again(guests: Guests, folder: Path) -> None:
    """It keeps no record of requests in flight: an idle disk goes on with its successor; with requests in flight the device
    needs a reset, and all that was synced is there."""
    image = ext4(folder / "disk.img", 64 * MB)
    path = folder / "qsd.sock"
    async with (
        storage_daemon(image, path) as daemon,
        VM(guests.config(disks=(DiskConfig(vhost_user=True, socket=path),))) as vm,
    ):
        events = vm.events()
        await vm.start()
        await prompt(vm)
        await shell(vm, "mkdir -p /mnt; mount /dev/vda /mnt")
        await shell(vm, "head -c 1048576 /dev/urandom >/mnt/a; sync; md5sum /mnt/a >/a")
        daemon.kill()
        daemon.start()
        await shell(vm, "echo 3 >/proc/sys/vm/drop_caches; md5sum -c /a")
        assert vhost_user(vm, "disk0").losses == 1
        digest = (await shell(vm, "head -c 8388608 /dev/urandom >/mnt/b; sync; md5sum </mnt/b")).split()[0]
        vm.serial.write(b"while :; do dd if=/dev/zero of=/mnt/c bs=64k count=100 oflag=direct 2>/dev/null; done\n")
        await until(lambda: daemon.has_written(12 * MB))
        daemon.kill()
        daemon.start()
        await event_of(events, EventKind.DEVICE_ERROR, "in flight")
        await vm.kill()
    replay_journal(image)
    check_clean(image)
    assert md5_inside(image, "b", folder / "out") == digest


async def test_our_back_end_killed_again_and_again_under_load(guests: Guests, folder: Path) -> None:
    """Its requests end out of order and are kept in the in-flight record: the guest sees a slow disk and no error."""
    image = ext4(folder / "disk.img", 96 * MB)
    path = folder / "ours.sock"
    async with (
        our_daemon(image, path) as daemon,
        VM(guests.config(disks=(DiskConfig(vhost_user=True, socket=path),))) as vm,
    ):
        await vm.start()
        await prompt(vm)
        await shell(vm, "mkdir -p /mnt; mount /dev/vda /mnt; head -c 2097152 /dev/urandom >/r")
        work = "for i in 1 2 3 4 5 6 7 8; do cat /r /r >/mnt/$i; sync; md5sum /mnt/$i >>/sums; done; echo al''l-written"
        vm.serial.write(work.encode() + b"\n")
        backend = vhost_user(vm, "disk0")
        for kills in (1, 2, 3):
            await until(lambda: daemon.has_written(4 * MB))
            daemon.kill()
            daemon.start()
            await until(lambda kills=kills: backend.losses == kills and backend.connected)  # type: ignore[misc]
        await vm.serial.expect(rb"all-written", timeout=limit(150))
        await prompt(vm)
        await shell(vm, "echo 3 >/proc/sys/vm/drop_caches; md5sum -c /sums; umount /mnt", timeout=120)
        assert not re.search(r"I/O error|EXT4-fs error", await shell(vm, "dmesg"))
        digest = (await shell(vm, "cat /r /r | md5sum")).split()[0]
        await power_off(vm)
    check_clean(image)
    for number in range(1, 9):
        assert md5_inside(image, str(number), folder / "out") == digest


@pytest.mark.parametrize("release", RELEASES)
async def test_a_folder_of_virtiofsd(guests: Guests, folder: Path, release: str) -> None:
    """Read and written from both sides. Some forty files: each is a dozen requests, and a nested host may be slow."""
    share, path = folder / "share", folder / "fs.sock"
    share.mkdir()
    for part in ("blk", "net"):
        tree = PROJECT / "aiovmm/devices/virtio" / part
        shutil.copytree(tree, share / "tree" / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (share / "large").write_bytes(os.urandom(8 * MB))
    names = sorted(p.relative_to(share) for p in share.rglob("*") if p.is_file())
    sums = "".join(f"{hashlib.md5((share / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (share / "sums").write_text(sums)
    with tarfile.open(share / "tree.tar", "w") as tar:
        tar.add(share / "tree", "unpacked")
    options = ["-o", f"source={share}", "-o", "sandbox=chroot", "--rlimit-nofile=1024"]
    config = guests.config(release, fs=(FsConfig(tag="shared", socket=path),), on_reboot=RebootPolicy.RESTART)
    async with Daemon([VIRTIOFSD, f"--socket-path={path}", *options], path) as daemon, VM(config) as vm:
        events = vm.events()
        await vm.start()
        await prompt(vm)
        await shell(vm, "mkdir -p /mnt; mount -t virtiofs shared /mnt; cd /mnt; md5sum -cs sums", timeout=120)
        await shell(vm, "tar xf tree.tar; head -c 8388608 /dev/urandom >of_guest; sync", timeout=120)
        digest = (await shell(vm, "md5sum <of_guest; cd /; umount /mnt")).split()[0]
        assert hashlib.md5((share / "of_guest").read_bytes()).hexdigest() == digest
        assert same_trees(share / "tree", share / "unpacked")

        vm.serial.write(b"reboot -f\n")  # the next machine mounts it on the same connection
        await event_of(events, EventKind.REBOOTED)
        await prompt(vm)
        await shell(vm, "mkdir -p /mnt; mount -t virtiofs shared /mnt")
        (share / "later").write_bytes(b"written by the host\n")
        assert (await shell(vm, "cat /mnt/later")).strip() == "written by the host"

        daemon.kill()
        await event_of(events, EventKind.DEVICE_ERROR, "session")
        await vm.kill()


async def test_a_network_card_served_by_ours(guests: Guests, folder: Path) -> None:
    """NetDevice on a TAP behind the socket: ping and a checksummed transfer each way; the server goes and comes back."""
    path = folder / "net.sock"
    own, theirs = "10.9.7.1", "10.9.7.2"

    def server() -> VhostUserServer:
        return VhostUserServer(make_net(NetConfig(tap="vutap", ip=own, mask="255.255.255.0")), path)

    first = server()
    await first.__aenter__()
    net = NetConfig(vhost_user=True, socket=path, mac="2e:00:00:00:00:07")
    async with VM(guests.config(nets=(net,))) as vm:
        await vm.start()
        await prompt(vm)
        assert "2e:00:00:00:00:07" in await shell(vm, "cat /sys/class/net/eth0/address")
        await shell(vm, f"ip address add {theirs}/24 dev eth0; ip link set eth0 up")
        assert " 0% packet loss" in await shell(vm, f"ping -c 3 -i 0.2 {own}")
        blob = os.urandom(8 * MB)
        assert await _send(vm, own, blob) == hashlib.md5(blob).hexdigest()
        digest, data = await _receive(vm, own)
        assert digest == hashlib.md5(data).hexdigest()
        assert len(data) == 8 * MB

        await first.__aexit__(None, None, None)
        async with server():
            await until(lambda: vhost_user(vm, "net0").connected)
            await shell(vm, "ip neigh flush dev eth0")  # the TAP is another, with an address of its own
            assert await _send(vm, own, blob) == hashlib.md5(blob).hexdigest()
            await vm.kill()


async def _send(vm: VM, address: str, blob: bytes) -> str:
    """The guest fetches `blob`; its checksum there."""

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(blob)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(give, address, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        return (await shell(vm, f"nc {address} {port} </dev/null | md5sum", timeout=90)).split()[0]


async def _receive(vm: VM, address: str) -> tuple[str, bytes]:
    """The guest sends 8 MiB; its checksum there, and the data."""
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.read())
        writer.close()

    async with await asyncio.start_server(take, address, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        command = f"head -c 8388608 /dev/urandom >/out; nc {address} {port} </out; md5sum </out"
        digest = (await shell(vm, command, timeout=90)).split()[0]
        return digest, await asyncio.wait_for(got, limit(30))


async def test_qemu_is_served_by_our_back_end(folder: Path, initramfs: dict[str, Path]) -> None:
    """The other monitor as the front end: its guest uses the block device of ours, in this process."""
    image, path = ext4(folder / "disk.img", 64 * MB), folder / "ours.sock"
    kernel = ("-kernel", GUESTS / "6.1/vmlinuz", "-initrd", initramfs["6.1"], "-append", "console=ttyS0 panic=-1 quiet")
    memory = ("-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-numa", "node,memdev=mem", "-m", "256")
    disk = ("-chardev", f"socket,id=c,path={path}", "-device", "vhost-user-blk-pci,chardev=c,num-queues=1")
    plain = (
        "-M",
        "q35",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
    )
    errors: list[Exception] = []
    device = BlkDevice(lambda: DiskImage.open(image))
    async with VhostUserServer(device, path, on_error=errors.append):
        command = [str(part) for part in ("qemu-system-x86_64", *plain, *memory, *disk, *kernel)]
        pipe = asyncio.subprocess.PIPE
        qemu = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            async with asyncio.timeout(limit(120)):
                await qemu.stdout.readuntil(b"guest:")
                work = "mkdir -p /mnt; mount /dev/vda /mnt; head -c 16777216 /dev/urandom >/mnt/of_guest; sync"
                qemu.stdin.write(
                    f"{work}; echo 3 >/proc/sys/vm/drop_caches; echo sum $(md5sum </mnt/of_guest)\n".encode()
                )
                await qemu.stdout.readuntil(b"\nsum ")
                digest = (await qemu.stdout.readexactly(32)).decode()
                qemu.stdin.write(b"umount /mnt; poweroff\n")
                while await qemu.stdout.read(4096):
                    pass
                await qemu.wait()
        finally:
            if qemu.returncode is None:
                qemu.kill()
                await qemu.wait()
    assert errors == []
    check_clean(image)
    assert md5_inside(image, "of_guest", folder / "out") == digest
