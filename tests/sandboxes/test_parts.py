"""What a sandbox is made of: its scratch disk, its kernel, its initramfs, its configuration."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiovmm
from aiovmm import DiskConfig, FsConfig, HostError, Image, ImageError, UsageError
from aiovmm.image import KernelFiles
from aiovmm.kvm import Kvm
from aiovmm.rootfs import BuiltImage, ImageConfig
from aiovmm.rootfs.kinds import kind_of
from aiovmm.sandboxes import virtiofsd
from aiovmm.sandboxes.guest import _Wanted
from aiovmm.sandboxes.kernel import check_drivers
from aiovmm.sandboxes.scratch import make_scratch
from aiovmm.sandboxes.virtiofsd import require
from aiovmm.sandboxes.volumes import Volume
from tests.rootfs.conftest import archive, file

_NAMES = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@pytest.mark.parametrize("shell", [("sh",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, _NAMES + "127.0.1.1\tbox\n"),
        ("", _NAMES + "127.0.1.1\tbox\n"),
        ("1.2.3.4 a.box boxes\n127.0.0.1 localhost", "1.2.3.4 a.box boxes\n127.0.0.1 localhost\n127.0.1.1\tbox\n"),
        ("# say localhost here\n1.2.3.4 box\n", f"# say localhost here\n1.2.3.4 box\n{_NAMES}"),
        ("127.0.0.1 localhost box\n", "127.0.0.1 localhost box\n"),
    ],
)
def test_localhost_and_the_guest_have_names(
    tmp_path: Path, shell: tuple[str, ...], before: str | None, after: str
) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip("there is no busybox")
    script = resources.files("aiovmm.sandboxes").joinpath("init.sh").read_text()
    functions = script[script.index("names() {") : script.index("modprobe -aq")]
    hosts = tmp_path / "hosts"
    if before is not None:
        hosts.write_text(before)
    command = f"{functions}\nnames '{hosts}' box; names '{hosts}' box"  # twice is as once
    subprocess.run([*shell, "-ec", command], check=True)
    assert hosts.read_text() == after


def test_a_volume_is_hidden_by_nothing_that_is_mounted_later() -> None:
    """In /run, /dev and the like: these are mounted in the new root first, and the agent is there."""
    script = resources.files("aiovmm.sandboxes").joinpath("init.sh").read_text()
    part = script[script.index("mkdir /scratch/upper") : script.index("exec switch_root")]
    told = "mount() { echo mount $*; }; cp() { echo cp $*; }; mkdir() { :; }; chmod() { :; }; hostname() { :; }; names() { :; }"
    given = "volumes='fs0:ro:/run/host fs1:rw:/dev/x' addresses= dns= name=box"
    done = subprocess.run(["sh", "-ec", f"{told}\n{given}\n{part}"], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[-2:] == [
        "mount -t virtiofs -o ro fs0 /sysroot/run/host",
        "mount -t virtiofs -o rw fs1 /sysroot/dev/x",
    ]
    assert {line.split()[-1] for line in lines[:-2]} >= {"/sysroot/run", "/sysroot/dev", "/sysroot/run/"}


@pytest.mark.parametrize("place", ["/dev", "/proc", "/run", "/sys"])
def test_a_volume_cannot_be_in_the_place_of_what_the_guest_has_there(place: str) -> None:
    with pytest.raises(UsageError, match=f"{place} is the guest's own"):
        Volume.parse(f"/tmp:{place}:ro")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def file_system(path: Path) -> Path:
    """One of ext4, of 8 MiB."""
    path.touch()
    os.truncate(path, 8 << 20)
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", path], check=True)
    return path


def test_a_scratch_disk_is_a_file_system_of_its_size_and_mostly_holes() -> None:
    first, second = make_scratch(256 << 20), make_scratch(256 << 20)
    assert first != second
    for path in (first.path, second.path):
        assert path.stat().st_size == 256 << 20
        assert path.stat().st_blocks * 512 < 16 << 20
        assert path.stat().st_mode & 0o777 == 0o600
        subprocess.run(["/usr/sbin/e2fsck", "-fn", path], check=True, capture_output=True)
    first.close()
    second.close()
    second.close()
    assert {path.name for path in first.path.parent.iterdir()} == {f"empty-{256 << 20}", "lock"}


MAKES = """
import sys
from aiovmm.sandboxes.scratch import make_scratch
scratch = make_scratch(64 << 20)
print(scratch.path, flush=True)
sys.stdin.read()
"""


def test_a_scratch_disk_that_a_killed_process_has_left_is_swept_away() -> None:
    """And no other, however long ago it was made: its process may have been stopped."""
    command, pipe = [sys.executable, "-c", MAKES], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        theirs, mine = Path(process.stdout.readline().strip()), make_scratch(64 << 20)
        unfinished = theirs.with_name(".0123")  # a template
        unfinished.touch()
        unfinished.with_name("0123.lock").touch()
        for path in (theirs, mine.path):
            os.utime(path, (1, 1))
        other = make_scratch(64 << 20)
        assert [path.exists() for path in (theirs, mine.path, other.path, unfinished)] == [True, True, True, False]
        assert not unfinished.with_name("0123.lock").exists()
        process.kill()
        process.wait()
    make_scratch(64 << 20).close()
    assert [path.exists() for path in (theirs, mine.path, other.path)] == [False, True, True]
    other.close()
    mine.close()
    assert {path.name for path in theirs.parent.iterdir()} == {f"empty-{64 << 20}", "lock"}


def test_a_scratch_disk_whose_template_cannot_be_asked_for_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one hole, which would be a disk without a file system."""
    make_scratch(64 << 20).close()  # so there is a template

    def fails(fd: int, at: int, whence: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lseek", fails)
    with pytest.raises(HostError, match="make a scratch disk"):
        make_scratch(64 << 20)


def test_a_scratch_disk_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(HostError, match="XDG_CACHE_HOME"):
        make_scratch(64 << 20)


def test_a_scratch_disk_without_mke2fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_more: None)
    with pytest.raises(ImageError, match="apt-get install e2fsprogs, or say disk=None"):
        make_scratch(64 << 20)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"disk": "1M"}, "give at least 16M"),
        ({"disk": "much"}, "not a size"),
        ({"disk": 1.5}, "no size"),
        ({"memory": True}, "no size"),
        ({"memory": "1M"}, "too few"),
        ({"cpus": 0}, "cpus"),
        ({"cpus": "2"}, "cpus"),
        ({"cmdline": None}, "cmdline: None is not text"),
        ({"name": 5}, "name: 5 is not a name"),
        ({"name": ""}, "name: ''"),
        ({"network": "yes"}, "network: 'yes' is not True"),
        ({"kernel": "/boot/vmlinuz"}, "KernelFiles"),
        ({"timeout": "5"}, "'5' is not a number of seconds"),
        ({"volumes": "src:/src"}, "volumes='src:/src' is no list"),
        ({"volumes": None}, "volumes=None is no list"),
        ({"volumes": [5]}, "volumes: 5 is not a volume"),
        ({"publish": [8080]}, "publish: 8080 is no pair of ports"),
        ({"publish": "80:80"}, "publish='80:80' is no list"),
        ({"publish": [(8080, 80), (8080, 81)]}, "publish: the host's port 8080 is given twice"),
        ({"on_start": 5}, "on_start: 5 cannot be called"),
        ({"publish": {"a": 1}}, "the host's port='a'"),
        ({"publish": {8080: None}}, "the guest's port=None"),
        ({"publish": {8080: 0}}, "the guest's port=0"),
        ({"publish": {80: 700000}}, "the guest's port=700000"),
        ({"disks": 5}, "disks=5 is no list"),
        ({"vsock": None}, "vsock: None leaves no way"),
        ({"payload": None}, "payload: is the sandbox's own"),
        ({"nonsense": 1}, "nonsense: there is no such field"),
        ({"balloon": 5}, "balloon"),
    ],
    ids=repr,
)
async def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, given: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        async with aiovmm.sandbox(tmp_path / "nothing", **given):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("image", [None, 5, ""], ids=repr)
async def test_what_is_no_image(image: Any) -> None:
    with pytest.raises(UsageError):
        async with aiovmm.sandbox(image):
            pass


@pytest.mark.parametrize("path", [None, 5, "", b""], ids=repr)
@pytest.mark.parametrize("kind", ["from_directory", "from_tar", "from_oci", "from_file_system", "from_docker_registry"])
def test_an_image_of_no_path_is_not_that_of_where_this_process_is(kind: str, path: Any) -> None:
    with pytest.raises(UsageError):
        getattr(Image, kind)(path)


@pytest.mark.parametrize("given", [{"limits": 5}, {"cache": 5}, {"cache": ""}], ids=repr)
def test_options_of_images_that_are_none(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Image.from_directory("/", **given)


def test_disks_that_are_given_come_after_the_sandbox_s_own(tmp_path: Path) -> None:
    changes = {"disks": [DiskConfig(path=tmp_path / "more"), f"path={tmp_path}/text"]}
    wanted = _Wanted("box", 1, "256M", "1G", "", changes)
    files, image = KernelFiles(tmp_path / "vmlinuz", None, "1.0"), tmp_path / "image"
    image.write_bytes(b"")
    config = wanted.config(
        files, tmp_path / "initramfs", BuiltImage(image, "erofs", ImageConfig({})), tmp_path / "scratch"
    )
    assert [disk.path and disk.path.name for disk in config.disks] == ["image", "scratch", "more", "text"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"volumes": ["/no/such:/x"]}, "a volume is a directory that is there"),
        ({"volumes": ["/tmp:/x"]}, "install virtiofsd"),
        ({"network": True}, "apt-get install passt"),
        ({"KVM": "none"}, "opening KVM: No such file"),
        ({"KVM": "/dev/null"}, "checking KVM's version|asking .* for its version"),
        ({}, "apt-get install e2fsprogs, or say disk=None"),
        ({"disk": None, "kernel": KernelFiles(Path("/no/kernel"), None, "1")}, "/no/kernel: no such kernel"),
        ({"disk": None, "kernel": KernelFiles(Path(__file__), None, "1")}, "test_parts.py"),
        ({"disk": None}, "none serves for a sandbox"),
    ],
    ids=[
        "folder",
        "virtiofsd",
        "passt",
        "no KVM",
        "no KVM's device",
        "mke2fs",
        "no kernel",
        "no kernel's file",
        "none found",
    ],
)
async def test_what_is_missing_on_the_host_is_told_before_an_image_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], reason: str
) -> None:
    """Which may take minutes."""

    def finds_none() -> KernelFiles:
        raise ImageError("kernel", "there is none")

    async def builds(image: Image) -> BuiltImage:
        raise AssertionError("it is built")

    monkeypatch.setattr(Image, "build", builds)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("aiovmm.sandboxes.virtiofsd._PLACES", ())
    monkeypatch.setattr("aiovmm.sandboxes.scratch._PATHS", "")
    for find in ("host_kernel", "kept_kernel", "debian_kernel"):
        monkeypatch.setattr(f"aiovmm.sandboxes.kernel.{find}", finds_none)
    wanted = {name: value for name, value in given.items() if name != "KVM"}
    is_there, place = SimpleNamespace(close=lambda: None), given.get("KVM")
    monkeypatch.setattr(Kvm, "hold", lambda: is_there if place is None else Kvm.open(str(tmp_path / place)))
    with pytest.raises((HostError, ImageError), match=reason):
        async with aiovmm.sandbox(tmp_path, **wanted):
            pass


def test_a_volume_in_another_is_mounted_after_it(tmp_path: Path) -> None:
    wanted = _Wanted("box", 1, "256M", None, "", {})
    volumes = [Volume.parse(text) for text in ("a:/x/y", "b:/x", "c:/a")]
    wanted.volumes = [(volume, FsConfig(tag=f"fs{n}", socket=tmp_path / "s")) for n, volume in enumerate(volumes)]
    image = tmp_path / "image"
    image.touch()
    built = BuiltImage(image, "erofs", ImageConfig({}))
    config = wanted.config(KernelFiles(tmp_path / "vmlinuz", None, "1.0"), tmp_path / "initramfs", built, None)
    told = [word for word in (config.payload.cmdline or "").split() if word.startswith("sandbox.volume=")]
    assert told == [f"sandbox.volume={one}" for one in ("fs2:rw:/a", "fs1:rw:/x", "fs0:rw:/x/y")]


async def test_two_volumes_cannot_be_at_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is said whether or not there is a program to share them."""
    monkeypatch.setattr(virtiofsd, "_PLACES", ())
    monkeypatch.setenv("PATH", "")
    volumes = [f"{tmp_path}:/x", f"{tmp_path}:/y", f"{tmp_path}:/x:ro"]
    with pytest.raises(UsageError, match="two directories are to be at /x"):
        require([Volume.parse(text) for text in volumes])


async def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        async with aiovmm.sandbox(tmp_path / "nothing"):
            pass


def test_a_kernel_without_the_drivers_is_refused(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    files = KernelFiles(tmp_path / "vmlinuz", modules, "1.0")
    check_drivers(files)  # nothing is known of what is built in
    (modules / "modules.builtin").write_text("kernel/fs/erofs/erofs.ko\nkernel/drivers/block/virtio_blk.ko\n")
    with pytest.raises(ImageError, match="lacks the drivers vmw_vsock_virtio_transport, overlay"):
        check_drivers(files)


def test_what_a_path_is_is_found_out(tmp_path: Path) -> None:
    layout, tree, plain = tmp_path / "layout", tmp_path / "tree", tmp_path / "plain.tar"
    layout.mkdir()
    tree.mkdir()
    (layout / "index.json").touch()
    plain.write_bytes(archive(file("./etc/passwd")))
    packed = tmp_path / "layout.tar"
    packed.write_bytes(archive(file("./oci-layout"), file("./index.json")))
    assert [kind_of(path) for path in (layout, tree, plain, packed)] == ["oci", "directory", "tar", "oci"]
    assert kind_of(file_system(tmp_path / "disk")) == "file_system"


async def test_a_file_system_is_taken_as_it_is(tmp_path: Path) -> None:
    disk = file_system(tmp_path / "disk")
    built = await Image.of(disk).build()
    assert (built.path, built.type, built.size, built.digest) == (disk, "ext4", 8 << 20, "")
    with pytest.raises(ImageError, match="no file system that is known"):
        await Image.from_file_system(__file__).build()
