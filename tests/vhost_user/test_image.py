"""Images that are not raw, by QEMU's storage daemon, under the driver simulator: qcow2, VHD and VHDX read and written; the
daemon's death; and what is refused before it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm.config import DiskConfig, ImageType
from aiovmm.config.options import parse_disk
from aiovmm.devices.virtio.blk.opening import kind_of
from aiovmm.devices.virtio.formats import format_of_file
from aiovmm.devices.virtio.vhost_user import image as image_module
from aiovmm.devices.virtio.vhost_user.image import ImageBlk, check_backing
from aiovmm.devices.virtio.vhost_user.storage_daemon import StorageDaemon
from aiovmm.errors import ConfigError, HostError, ImageError
from tests.pci.echo import until
from tests.vhost_user.bench import Guest
from tests.vhost_user.disks import read_header, write_header

needs_daemon = pytest.mark.skipif(
    not shutil.which("qemu-storage-daemon") or not shutil.which("qemu-img"), reason="qemu-utils is not installed"
)
KINDS = [("qcow2", ImageType.QCOW2), ("vpc", ImageType.VHD), ("vhdx", ImageType.VHDX)]
MB = 1 << 20


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the sockets are: nothing may be left there."""
    place = tempfile.mkdtemp(prefix="avmm")
    monkeypatch.setattr(tempfile, "tempdir", place)
    yield
    left = os.listdir(place)
    shutil.rmtree(place)
    assert not left


def test_a_socket_whose_path_would_be_too_long_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("x" * 100)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    daemon = StorageDaemon(DiskConfig(path=tmp_path / "disk"), ImageType.QCOW2, print)
    with pytest.raises(HostError, match=r"File name too long \(.*at most 107 bytes: set TMPDIR.*" + str(place)):
        daemon.listen()
    assert not os.listdir(place)


def qemu_img(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def raw(image: Path, format_: str) -> bytes:
    """What a guest would see."""
    out = image.with_name(image.name + ".raw")
    qemu_img("convert", "-f", format_, "-O", "raw", image, out)
    return out.read_bytes()


def made(path: Path, format_: str, content: bytes = b"") -> Path:
    source = path.with_name("source")
    source.write_bytes(content.ljust(8 * MB, b"\0"))
    qemu_img("convert", "-f", "raw", "-O", format_, source, path)
    return path


@needs_daemon
@pytest.mark.parametrize(("format_", "kind"), KINDS)
async def test_read_and_written(tmp_path: Path, format_: str, kind: ImageType) -> None:
    image = made(tmp_path / "an,image", format_, b"was here".ljust(512, b"."))
    config = DiskConfig(path=image, image_type=kind, num_queues=2)
    assert kind_of(DiskConfig(path=image)) is kind, "it is not known by its looks"
    async with Guest(ImageBlk(config, kind)) as guest:
        assert int.from_bytes(guest.device.read_config(0, 8), "little") >= 8 * MB // 512
        await guest.driver.start()
        assert (await guest.driver.request(0, [read_header(0)], [512, 1])).startswith(b"was here")
        assert await guest.driver.request(1, [write_header(64), b"x" * 8192], [1]) == b"\0"
        assert await guest.driver.request(0, [b"\4".ljust(16, b"\0")], [1]) == b"\0"  # FLUSH
        await guest.driver.reset()
    content = raw(image, format_)
    assert content[64 * 512 : 64 * 512 + 8192] == b"x" * 8192
    if kind is ImageType.QCOW2:
        qemu_img("check", image)


@needs_daemon
async def test_a_read_only_one_is_not_written(tmp_path: Path) -> None:
    image = made(tmp_path / "image", "qcow2")
    before = image.read_bytes()
    config = DiskConfig(path=image, readonly=True)
    async with Guest(ImageBlk(config, ImageType.QCOW2)) as guest, Guest(ImageBlk(config, ImageType.QCOW2)):
        await guest.driver.start()
        assert await guest.driver.request(0, [write_header(0), b"x" * 512], [1]) == b"\1"
    assert image.read_bytes() == before


@needs_daemon
async def test_two_writers_are_refused_with_the_daemons_words(tmp_path: Path) -> None:
    image = made(tmp_path / "image", "qcow2")
    disk = ImageBlk(DiskConfig(path=image), ImageType.QCOW2)
    await disk.open()
    with pytest.raises(HostError, match=r"ended with code 1, saying.*lock"):
        await ImageBlk(DiskConfig(path=image), ImageType.QCOW2).open()
    await disk.close()


@needs_daemon
async def test_the_daemon_goes_with_the_disk(tmp_path: Path) -> None:
    image = made(tmp_path / "image", "qcow2")
    disk = ImageBlk(DiskConfig(path=image), ImageType.QCOW2)
    for _ in range(2):
        await disk.open()
        assert disk.daemon is not None
        pid = disk.daemon.pid
        assert pid is not None
        await disk.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    await disk.close()


@needs_daemon
@pytest.mark.parametrize("lived", [True, False], ids=["of-use", "at-once"])
async def test_killed_it_is_told_and_the_driver_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lived: bool
) -> None:
    """What was not flushed is in the caches of nobody now, so nothing may look as if it were there."""
    if lived:
        monkeypatch.setattr(image_module, "_LIVED", 0.0)
    image = made(tmp_path / "image", "qcow2")
    disk = ImageBlk(DiskConfig(path=image), ImageType.QCOW2)
    reported: list[Exception] = []
    async with Guest(disk) as guest:
        disk._notify_error = reported.append
        await guest.driver.start()
        assert await guest.driver.request(0, [write_header(0), b"x" * 512], [1]) == b"\0"
        assert await guest.driver.request(0, [b"\4".ljust(16, b"\0")], [1]) == b"\0"
        assert disk.daemon is not None
        first = disk.daemon.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await guest.broken()
        await until(lambda: any("has ended by signal 9" in str(error) for error in reported))
        if lived:
            await until(lambda: disk.daemon is not None and disk.daemon.pid != first)
            await guest.driver.reset()
            await guest.driver.start()
            assert await guest.driver.request(0, [read_header(0)], [512, 1]) == b"x" * 512 + b"\0"
        else:
            assert disk.daemon.pid == first, "one that ends at once was started again"
        guest.errors.clear()


@needs_daemon
async def test_it_goes_with_a_monitor_that_is_killed(tmp_path: Path) -> None:
    image = made(tmp_path / "image", "qcow2")
    script = (
        "import asyncio,sys\nfrom aiovmm.config import DiskConfig,ImageType\n"
        "from aiovmm.devices.virtio.vhost_user.image import ImageBlk\n"
        "async def main():\n d=ImageBlk(DiskConfig(path=sys.argv[1]),ImageType.QCOW2)\n await d.open()\n"
        " print(d.daemon.pid, d.daemon._directory, flush=True)\n await asyncio.sleep(600)\nasyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(image), stdout=subprocess.PIPE)
    assert process.stdout is not None
    pid, directory = (await process.stdout.readline()).split()
    process.kill()
    await process.wait()
    await until(lambda: status(int(pid)) == b"Z")
    shutil.rmtree(directory)


def status(pid: int) -> bytes:
    """The state of a process; Z: it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return b"Z"


async def test_without_the_program_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(504))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="Debian's package qemu-utils"):
        await ImageBlk(DiskConfig(path=image), ImageType.QCOW2).open()


@needs_daemon
async def test_a_backing_file_is_opened_if_somebody_says_so(tmp_path: Path) -> None:
    made(tmp_path / "base", "qcow2", b"from the base".ljust(512, b"."))
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", image)
    with pytest.raises(ImageError, match=r"is backed by base.*backing_files=on"):
        await ImageBlk(DiskConfig(path=image), ImageType.QCOW2).open()
    async with Guest(ImageBlk(parse_disk(f"path={image},backing_files=on"), ImageType.QCOW2)) as guest:
        await guest.driver.start()
        assert (await guest.driver.request(0, [read_header(0)], [512, 1])).startswith(b"from the base")


@needs_daemon
@pytest.mark.parametrize("how", ["unknown", "protocol", "json", "loop", "data"])
async def test_what_names_files_in_other_ways(tmp_path: Path, how: str) -> None:
    image = tmp_path / "image"
    base = made(tmp_path / "base", "qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", image)
    if how == "data":
        qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", image, "1M")
        with pytest.raises(ImageError, match="keeps its data in another file"):
            await ImageBlk(DiskConfig(path=image), ImageType.QCOW2).open()
        return
    if how == "loop":
        qemu_img("rebase", "-u", "-b", "image", "-F", "qcow2", base)
    else:
        name = {"protocol": "nbd://127.0.0.1:1/x", "json": 'json:{"driver":"null-co"}'}.get(how, "base")
        named = ("-F", "raw") if how != "unknown" else ()
        forge(image, name, *named)
    config = DiskConfig(path=image, backing_files=True)
    with pytest.raises(ImageError, match=r"does not say of what format|no file's name|by itself"):
        await ImageBlk(config, ImageType.QCOW2).open()


def forge(image: Path, name: str, *named: str) -> None:
    """Write a backing file's name over the one that is there; QEMU's own tool would not in each case."""
    data = bytearray(image.read_bytes())
    at = int.from_bytes(data[8:16], "big")
    encoded = name.encode()
    data[at : at + len(encoded)] = encoded
    data[16:20] = len(encoded).to_bytes(4, "big")
    if not named:
        start = int.from_bytes(data[100:104], "big")
        data[start : start + 8] = bytes(8)  # the end of the extensions
    image.write_bytes(data)


@pytest.mark.parametrize("kind", [kind for _, kind in KINDS])
@needs_daemon
async def test_damaged_images_are_refused_by_whoever_sees_it(tmp_path: Path, kind: ImageType) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(4096))
    with pytest.raises((ImageError, HostError), match=r"saying|is no"):
        await ImageBlk(DiskConfig(path=image, image_type=kind), kind).open()
    image.unlink()
    with pytest.raises(HostError, match="opening the disk image"):
        await ImageBlk(DiskConfig(path=image, image_type=kind), kind).open()


def test_what_a_found_image_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"disk\.serial.*qcow2"):
        ImageBlk(DiskConfig(path=tmp_path / "x", serial="1"), ImageType.QCOW2)


def test_kinds(tmp_path: Path) -> None:
    assert kind_of(DiskConfig(path=tmp_path / "nothing")) is None
    os.mkfifo(tmp_path / "fifo")
    assert kind_of(DiskConfig(path=tmp_path / "fifo")) is None
    (tmp_path / "q").write_bytes(b"QFI\xfb" + bytes(508))
    assert kind_of(DiskConfig(path=tmp_path / "q")) is ImageType.QCOW2
    assert kind_of(DiskConfig(path=tmp_path / "q", image_type=ImageType.RAW)) is None
    assert json.dumps(parse_disk("path=/q,image_type=VHDX").image_type.value) == '"vhdx"'  # type: ignore[union-attr]


@pytest.mark.timeout(30)  # what would wait for somebody to write
def test_a_base_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a file nor a block device"):
        format_of_file(tmp_path / "fifo")
    header = bytearray(b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(4096))
    name, extension = b"fifo", (0xE2792ACA).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"qcow2\0\0\0"
    header[8:20] = (1024).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    header[20:24] = (16).to_bytes(4, "big")
    header[100:104] = (104).to_bytes(4, "big")
    header[104 : 104 + len(extension)] = extension
    header[1024 : 1024 + len(name)] = name
    (tmp_path / "q").write_bytes(header)
    with pytest.raises(OSError, match="neither a file nor a block device"):
        check_backing(tmp_path / "q", followed=True)
