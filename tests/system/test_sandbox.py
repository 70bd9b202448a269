"""Sandboxes with stock kernels: what a program that embeds them does, from an image to the end of the block."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import aiovmm
from aiovmm import AgentLost, DiskConfig, Image
from aiovmm.image import KernelFiles
from aiovmm.sandboxes import Network, Sandbox
from tests.rootfs.test_image import Layout
from tests.sandboxes.frames import query
from tests.sandboxes.name_server import served
from tests.sandboxes.world import HERE, HERE6, NEAR, OTHER, PAGE, WEB, WEB6, digest, world
from tests.system.conftest import GUESTS, RELEASES
from tests.system.guest import BOOT, limit


def kernel(release: str = "6.1") -> KernelFiles:
    return KernelFiles(GUESTS / release / "vmlinuz", GUESTS / release / "modules", release)


@pytest.fixture(scope="module", autouse=True)
def _cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the disk of the host: a sandbox's own disk is a file there."""
    before = os.environ.get("XDG_CACHE_HOME")
    path = tempfile.mkdtemp(prefix="cache", dir="/var/tmp")
    os.environ["XDG_CACHE_HOME"] = path
    yield
    shutil.rmtree(path)
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with busybox, users, and files of all kinds."""
    path = tmp_path_factory.mktemp("root")
    for name in ("bin", "etc", "home/nobody", "opt/deep/er"):
        (path / name).mkdir(parents=True)
    shutil.copy(GUESTS / "bin/busybox", path / "bin/busybox")
    for applet in subprocess.check_output([GUESTS / "bin/busybox", "--list"], text=True).split():
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/home/nobody:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    os.chown(path / "home/nobody", 65534, 65534)
    (path / "opt/deep/er/data").write_bytes(bytes(range(256)) * 100)
    os.chmod(path / "bin/busybox", 0o755)
    return path


@pytest.mark.parametrize("release", RELEASES)
async def test_from_a_directory_to_commands(root: Path, release: str) -> None:
    async with aiovmm.sandbox(Image.from_directory(root), kernel=kernel(release), timeout=BOOT, name="box") as vm:
        done = await vm.run(
            ["sh", "-c", "hostname; cat /opt/deep/er/data | md5sum; stat -c %u /home/nobody; cat /etc/hosts"],
            timeout=limit(60),
        )
        digest = hashlib.md5((root / "opt/deep/er/data").read_bytes()).hexdigest()
        assert done.stdout.decode().split()[:4] == ["box", digest, "-", "65534"]
        assert done.stdout.decode().split()[4:] == [
            *("127.0.0.1", "localhost", "::1", "localhost", "ip6-localhost", "ip6-loopback", "127.0.1.1", "box")
        ]
        mounts = (await vm.run(["cat", "/proc/mounts"], timeout=limit(60))).stdout.decode()
        assert "root / overlay rw" in mounts
        free = (await vm.run(["df", "-m", "/"], timeout=limit(60))).stdout.decode().splitlines()[-1].split()
        assert 1800 < int(free[1]) <= 2048
    assert list((Path(os.environ["XDG_CACHE_HOME"]) / "aiovmm/scratch").glob("*.ext4")) == []


async def test_an_oci_image_runs_as_it_says(root: Path, tmp_path: Path) -> None:
    """Two layers; its environment, user and directory are those of commands that are not told otherwise."""
    base, layer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=base, mode="w") as tar:
        tar.add(root, ".")
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("opt/deep/.wh.er"))
        tar.addfile(tarfile.TarInfo("opt/new"))
    layout = Layout(tmp_path / "layout")
    layout.add(base.getvalue(), layer.getvalue(), Env=["PATH=/bin", "A=b c"], User="nobody", WorkingDir="/home/nobody")
    image = Image.from_oci(layout.path)
    async with aiovmm.sandbox(image, kernel=kernel(), timeout=BOOT, disk=None) as vm:
        done = await vm.run(["sh", "-c", 'id -u; pwd; echo "$A"; ls /opt /opt/deep; touch x; ls'], timeout=limit(60))
        assert done.stdout.decode().split("\n") == ["65534", "/home/nobody", "b c", *_LISTED, ""]
        other = await vm.run(
            ["sh", "-c", "id -u; pwd; echo $A"], user="root", cwd="/", env={"A": "d"}, timeout=limit(60)
        )
        assert other.stdout.decode().split() == ["0", "/", "d"]
        assert (await vm.run(["touch", "/opt/y"], timeout=limit(60))).returncode == 1  # it is nobody


_LISTED = ["/opt:", "deep", "new", "", "/opt/deep:", "x"]


async def test_guests_share_an_image_and_not_what_they_write(root: Path) -> None:
    async with AsyncExitStack() as stack:
        make = [
            aiovmm.sandbox(Image.from_directory(root), kernel=kernel(), timeout=BOOT, memory="128M") for _ in range(2)
        ]
        first, second = await asyncio.gather(*(stack.enter_async_context(one) for one in make))
        assert first.image.path == second.image.path
        await first.run(["sh", "-c", "echo mine > /opt/mine; rm /etc/group"], check=True, timeout=limit(60))
        assert (await second.run(["ls", "/opt"], timeout=limit(60))).stdout == b"deep\n"
        assert (await second.run(["test", "-e", "/etc/group"], timeout=limit(60))).returncode == 0
    assert (root / "etc/group").exists()


async def test_volumes_are_shared_and_read_only_ones_are_so_for_whoever_mounts_them(root: Path, folder: Path) -> None:
    for name in ("rw", "ro"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    volumes = [f"{folder}/rw:/data/rw", f"{folder}/ro:/data/ro:ro"]
    async with aiovmm.sandbox(root, kernel=kernel(), timeout=BOOT, volumes=volumes) as vm:
        assert (await vm.run(["cat", "/data/rw/file", "/data/ro/file"], timeout=limit(60))).stdout == b"rwro"
        await vm.run(["sh", "-c", "echo more >> /data/rw/file"], check=True, timeout=limit(60))
        assert (folder / "rw/file").read_text() == "rwmore\n"
        await vm.run(["mount", "-o", "remount,rw", "/data/ro"], timeout=limit(60))
        assert (await vm.run(["sh", "-c", "echo more >> /data/ro/file"], timeout=limit(60))).returncode != 0
        daemons = children()
        assert len(daemons) == 2
    assert (folder / "ro/file").read_text() == "ro"
    assert children() == set()


def children() -> set[int]:
    """Processes of this one that are virtiofsd."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, fields = path.read_text().rsplit(")", 1)
            if int(fields.split()[1]) == os.getpid() and "virtiofsd" in name:
                found.add(int(path.parent.name))
    return found


async def test_a_port_is_published(root: Path) -> None:
    async with aiovmm.sandbox(root, kernel=kernel(), timeout=BOOT, publish={18080: 80}) as vm:
        await vm.create_process("nc", "-ll", "-p", "80", "-e", "echo", "hello")
        async with asyncio.timeout(limit(60)):
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", 18080)
                said = await reader.read()
                writer.close()
                if said:
                    break
                await asyncio.sleep(0.1)  # it does not listen yet
        assert said == b"hello\n"


async def test_a_guest_that_never_is_ready(root: Path, tmp_path: Path) -> None:
    """Its image has no file system that the kernel knows: it says so, and ends; the block is left with that."""
    broken = tmp_path / "broken.erofs"
    broken.write_bytes(bytes(1024) + bytes.fromhex("e2e1f5e0") + b"\xff" * 8000)
    with pytest.raises(AgentLost, match="the image cannot be mounted: has this kernel erofs") as caught:
        async with aiovmm.sandbox(Image.from_file_system(broken), kernel=kernel(), timeout=BOOT):
            pass
    assert caught.value.status is not None


async def test_the_command_line_runs_a_command(root: Path, tmp_path: Path) -> None:
    """What `make test` in a guest needs: streams that are the command's own, and its status."""
    image = tmp_path / "root.tar"
    with tarfile.open(image, "w") as tar:
        tar.add(root, ".")
    options = [
        "--rootfs",
        image,
        "--kernel",
        GUESTS / "6.1/vmlinuz",
        "--cpus",
        "1",
        "--memory",
        "size=128M",
        "-e",
        "B=7",
    ]

    async def run(*words: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
        pipe = asyncio.subprocess.PIPE
        command = ("aiovmm", "run", *map(str, options), "--", *words)
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(BOOT):
            out, errors = await process.communicate(data)
        assert process.returncode is not None
        return process.returncode, out, errors

    data = bytes(range(256)) * 1000
    code, out, errors = await run("sh", "-c", "cat; echo $B >&2; exit 7", data=data)
    assert (code, out, errors) == (7, data, b"7\n")
    code, out, errors = await run("no-such-program")
    assert (code, out) == (127, b"")
    assert b"no-such-program" in errors
    assert (await run("sh", "-c", "kill -9 $$"))[0] == 128 + 9


_PASST = f"""#!{sys.executable}
# What passt answers to whoever asks where its addresses are; all else is the filter's here.
import socket, sys
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
stream, mac = sock.makefile("rb"), bytes.fromhex("9a5500000002")
while head := stream.read(4):
    frame = stream.read(int.from_bytes(head, "big"))
    if frame[12:14] == b"\\x08\\x06" and frame[20:22] == b"\\0\\1":
        answer = frame[6:12] + mac + frame[12:20] + b"\\0\\2" + mac + frame[38:42] + frame[22:32]
        sock.sendall(len(answer).to_bytes(4, "big") + answer)
"""


async def test_names_are_resolved_by_tcp(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the guest's own TCP, with an answer that no datagram holds; and not those that are not allowed."""
    passt = tmp_path / "bin/passt"
    passt.parent.mkdir()
    passt.write_text(_PASST)
    passt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{passt.parent}:{os.environ['PATH']}")
    network = Network(allow=("*.example",))
    async with (
        served(monkeypatch) as servers,
        aiovmm.sandbox(root, kernel=kernel(), timeout=BOOT, network=network) as vm,
    ):
        for name, size in (("30000.example", 30000), ("30000.evil.org", 12 + len(b"30000evilorg") + 4 + 4)):
            message = query(name)
            await vm.files.write("/question", len(message).to_bytes(2, "big") + message)
            done = await vm.run(["sh", "-c", "nc 10.0.2.3 53 < /question | wc -c"], timeout=limit(60))
            assert int(done.stdout) == 2 + size, done
        assert len(servers.asked) == 1


async def test_a_network_by_passt(root: Path) -> None:
    """Out of the guest a page and a file, by IPv4 and IPv6, and into it what it publishes; refused: another network, and this
    host, by an address of its own that is of an allowed one, and by the gateway's."""
    network = Network(allow=NEAR)
    with world() as around, socket.create_server(("::", 8000), family=socket.AF_INET6, dualstack_ipv6=True) as own:
        own.settimeout(0)
        async with aiovmm.sandbox(
            root, kernel=kernel(), timeout=BOOT, network=network, publish={0: 8080}, memory="512M"
        ) as vm:
            data = os.urandom(1 << 19).hex().encode()  # busybox takes a zero byte for its end
            await vm.files.write("/posted", data)
            for host in (WEB, f"[{WEB6}]"):
                assert await fetched(vm, f"http://{host}/fetched") == PAGE
                assert await fetched(vm, "--post-file=/posted", f"http://{host}/posted") == digest(data).encode()
            for host in (f"{OTHER}:80", f"{HERE}:8000", f"[{HERE6}]:8000", "10.0.2.2:8000"):
                done = await vm.run(["wget", "-q", "-O-", f"http://{host}/denied"], timeout=limit(60))
                assert done.returncode != 0, host
                assert b"can't connect" in done.stderr, done  # at once: it is told by ICMP
            with pytest.raises(BlockingIOError):
                own.accept()
            await vm.create_process("httpd", "-f", "-p", "8080", "-h", "/opt/deep")
            [port] = vm.published
            async with asyncio.timeout(limit(60)):
                assert await taken(port, "/er/data") == (root / "opt/deep/er/data").read_bytes()
        assert {*around.end()} == {"/fetched", "/posted"}


async def fetched(vm: Sandbox, *words: str) -> bytes:
    """By wget in the guest. passt resets connections whose guest was without a processor for two seconds (its ACK_TIMEOUT)."""
    async with asyncio.timeout(limit(60)):
        while (done := await vm.run(["wget", "-q", "-O-", *words])).returncode:
            print(f"wget {words}: {done.stderr!r}")
        return done.stdout


async def taken(port: int, path: str) -> bytes:
    """From a web server of the guest's, as soon as it listens."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with suppress(ConnectionError):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            if head:
                assert b"200 OK" in head, head
                return body
        writer.close()
        await asyncio.sleep(0.1)


async def test_disks_of_ones_own_come_after_the_sandboxes(root: Path, folder: Path) -> None:
    disk, data = folder / "disk", os.urandom(4 << 20)
    disk.write_bytes(data)
    disks = [DiskConfig(path=disk)]
    async with aiovmm.sandbox(root, kernel=kernel(), timeout=BOOT, disks=disks) as vm:
        done = await vm.run(["md5sum", "/dev/vdc"], timeout=limit(60))
        assert done.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()
        script = "echo written | dd of=/dev/vdc conv=notrunc,fsync"
        await vm.run(["sh", "-c", script], check=True, timeout=limit(60))
    assert disk.read_bytes() == b"written\n" + data[8:]


@contextmanager
def passable(*paths: Path) -> Iterator[None]:
    """Everybody gets to them meanwhile."""
    with ExitStack() as stack:
        for folder in {parent for path in paths for parent in path.resolve().parents}:
            mode = folder.stat().st_mode & 0o7777
            if mode & 0o011 != 0o011:
                stack.callback(folder.chmod, mode)
                folder.chmod(mode | 0o011)
        yield


def users(process: int) -> set[str]:
    """Whose it is: the real, the effective, the saved user, and who it is to files."""
    status = Path(f"/proc/{process}/status").read_text()
    return set(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:])


async def test_the_command_line_as_another_user_of_the_host(root: Path, folder: Path) -> None:
    """A directory as root; all that is made for the guest is that user's, to whom the guest's root is root."""
    os.chmod(folder, 0o755)
    shutil.copytree(root, folder / "root", symlinks=True)
    os.chmod(folder / "root", 0o755)
    environment = dict(os.environ)
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, 65534, 65534)
        environment[name] = str(folder / name)
    options = ["--rootfs", folder / "root", "--kernel", GUESTS / "6.1/vmlinuz", "--host-user", "65534:65534"]
    command = ["aiovmm", "run", *map(str, options), "--memory", "size=256M", "--", "sh", "-c", "id -u; cat; exit 3"]
    pipe = asyncio.subprocess.PIPE
    with passable(Path(sys.prefix) / "x", Path(aiovmm.__file__), GUESTS / "6.1/vmlinuz"):
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(BOOT):
            line = await process.stdout.readline()
            assert line == b"0\n", (line, await process.stderr.read())
            assert users(process.pid) == {"65534"}
            out, errors = await process.communicate(b"through")
    assert (process.returncode, out, errors) == (3, b"through", b"")
