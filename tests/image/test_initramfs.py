from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner

from aiovmm.agent import agent_binary
from aiovmm.cli.image import initramfs
from aiovmm.errors import ConfigError, HostError, ImageError, UsageError
from aiovmm.image import Initramfs, build_initramfs, debian_kernel
from aiovmm.image.modules import ModuleTree
from aiovmm.runtime import ofdlock
from tests.boot.images import INTERP, elf
from tests.cli.test_disk import require_unnamed_files
from tests.image.conftest import RELEASE, ko
from tests.limits import HANGS

BUSYBOX = shutil.which("busybox")
needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="no busybox (package busybox-static)")
pytestmark = pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio (package cpio)")


def extract(image: Initramfs, directory: Path) -> Path:
    """The archive's content without device nodes, which need root."""
    command = ["cpio", "-i", "-d", "--nonmatching", "dev/*", "--quiet"]
    subprocess.run(command, input=image.data, cwd=directory, check=True, timeout=20)
    return directory


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return extract(build_initramfs(busybox=BUSYBOX, modules=tree), tmp_path / "out")


@needs_busybox
def test_busybox_with_all_its_applets(root: Path) -> None:
    assert (root / "bin/sh").readlink() == Path("busybox")
    assert os.access(root / "bin/busybox", os.X_OK)
    assert (root / "sbin/modprobe").resolve() == (root / "bin/busybox").resolve()
    assert os.access(root / "init", os.X_OK)


@needs_busybox
def test_scripts_are_valid_shell(root: Path) -> None:
    for script in ("init", "etc/aiovmm/console", "etc/aiovmm/session"):
        subprocess.run([str(BUSYBOX), "sh", "-n", str(root / script)], check=True, timeout=10)


@needs_busybox
def test_modules_are_those_wanted_that_exist_with_their_dependencies(root: Path) -> None:
    directory = root / "lib/modules" / RELEASE
    found = {p.name for p in directory.glob("*.ko")}
    assert found == {
        f"{n}.ko"
        for n in ("virtio", "virtio_ring", "virtio_pci", "virtio_blk", "virtio_rng", "ext4", "jbd2", "crc32c", "button")
    }
    assert (root / "etc/aiovmm/modules").read_text() == "button\n"


@needs_busybox
def test_modules_that_are_asked_for_by_name_are_added_to_the_others(tree: Path) -> None:
    usual = build_initramfs(busybox=None, modules=tree, files={"/init": b"#!/bin/sh"}).modules
    (tree / "kernel").mkdir(exist_ok=True)
    (tree / "kernel" / "dm_mod.ko").write_bytes(ko("dm_mod"))
    name = "dm_mod"
    more = build_initramfs(modules=tree, required=[name], files={"/init": b"#!/bin/sh"}).modules
    assert {*usual, name} <= set(more)
    with pytest.raises(ImageError, match="has no kernel module nonsense"):
        build_initramfs(modules=tree, required=["nonsense"], files={"/init": b"#!/bin/sh"})
    with pytest.raises(UsageError, match="no directory of modules"):
        build_initramfs(required=[name], files={"/init": b"#!/bin/sh"})


def test_indexes_for_modprobe(root: Path) -> None:
    """modules.dep lists all that a module needs, and modprobe loads a line from its end."""
    directory = root / "lib/modules" / RELEASE
    dep = dict(line.split(":") for line in (directory / "modules.dep").read_text().splitlines())
    assert dep["virtio_blk.ko"].split() == ["virtio.ko", "virtio_ring.ko"]
    assert dep["virtio_ring.ko"] == ""
    assert set(dep["ext4.ko"].split()) == {"jbd2.ko", "crc32c.ko"}
    aliases = (directory / "modules.alias").read_text().splitlines()
    assert "alias virtio:d00000002v* virtio_blk" in aliases
    assert "alias fs-ext4 ext4" in aliases


@needs_busybox
@pytest.mark.skipif(shutil.which("depmod") is None, reason="no depmod (package kmod)")
def test_dependencies_of_real_modules_are_those_that_depmod_finds(tmp_path: Path) -> None:
    """depmod looks at symbols, we at what the modules say: both must come to the same."""
    try:
        files = debian_kernel()
    except ImageError as exc:
        pytest.skip(f"no Debian kernel: {exc}")
    assert files.modules is not None
    root = extract(build_initramfs(busybox=BUSYBOX, modules=files.modules), tmp_path)
    path = root / "lib/modules" / files.release / "modules.dep"
    ours = dependencies(path)
    subprocess.run(["depmod", "-b", str(root), files.release], check=True, timeout=60, capture_output=True)
    assert ours == dependencies(path)
    built_in = {f"{name}.ko" for name in ModuleTree(files.modules).builtin}
    assert {"virtio_pci.ko", "virtio_blk.ko", "virtio_net.ko", "button.ko", "evdev.ko"} <= set(ours) | built_in


def dependencies(path: Path) -> dict[str, set[str]]:
    lines = (line.split(":") for line in path.read_text().splitlines())
    return {name: set(needs.split()) for name, needs in lines}


NAMES = ["[", "[[", "awk", "busybox", "dd", "modprobe", "mount", "od", "poweroff", "reboot", "sed", "setsid", "sh"]
NAMES += ["start-stop-daemon", "stty", "timeout", "umount", "yes"]


def foreign(names: list[str] = NAMES, machine: int = 183) -> bytes:
    """A program for another processor, with a table of names as busybox has it between other strings."""
    table = b"".join(name.encode() + b"\0" for name in names)
    return elf([(0x400000, b"usage " + table + b"\0applet not found\0", 4096)], machine=machine)


def test_busybox_that_does_not_run_here(tree: Path, tmp_path: Path) -> None:
    """Its applets are read from its own table, for nobody can ask it."""
    (tmp_path / "busybox").write_bytes(foreign())
    for path in tree.rglob("*.ko"):
        path.write_bytes(ko(path.stem, machine=183))
    image = build_initramfs(busybox=tmp_path / "busybox", modules=tree)
    assert {path.name for path in map(Path, image.paths) if path.parent.name == "bin"} == set(NAMES)
    assert "virtio_pci" in image.modules


def test_busybox_that_does_not_run_here_and_lacks_what_is_needed(tmp_path: Path) -> None:
    for data in (foreign(["[", "[[", "awk", "sh"]), foreign([])):
        (tmp_path / "busybox").write_bytes(data)
        with pytest.raises(ImageError, match="lacks the applets dd, modprobe, mount"):
            build_initramfs(busybox=tmp_path / "busybox")


def test_busybox_for_a_processor_that_no_guest_has(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(foreign(machine=243))
    with pytest.raises(ImageError, match="not a statically linked program"):
        build_initramfs(busybox=tmp_path / "busybox")


def test_busybox_and_modules_of_different_architectures(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(foreign())
    with pytest.raises(ImageError, match="a program for arm64, and the modules are for x86-64"):
        build_initramfs(busybox=tmp_path / "busybox", modules=tree)


@needs_busybox
def test_equal_inputs_give_equal_bytes(tree: Path) -> None:
    one, other = (build_initramfs(busybox=BUSYBOX, modules=tree, run="true") for _ in range(2))
    assert one.data == other.data


@needs_busybox
def test_the_command_adds_the_modules_that_are_asked_for(tree: Path, tmp_path: Path) -> None:
    """`aiovmm image initramfs --module NAME`, more than once: they and what they need come beside the usual ones."""
    (tree / "kernel/lib/extra.ko").write_bytes(ko("extra", depends="needed"))
    (tree / "kernel/lib/needed.ko").write_bytes(ko("needed"))
    given = ["--busybox", str(BUSYBOX), "--modules", str(tree)]
    found = []
    for asked in ([], ["--module", "later", "--module", "extra"]):
        done = CliRunner().invoke(initramfs, [str(tmp_path / "image"), *given, *asked], catch_exceptions=False)
        assert done.exit_code == 0
        (out := tmp_path / f"out{len(asked)}").mkdir()
        image = Initramfs((tmp_path / "image").read_bytes(), (), (), RELEASE)
        found.append({path.stem for path in extract(image, out).rglob("*.ko")})
    assert found[1] - found[0] == {"later", "extra", "needed"}
    assert found[0] < found[1]
    with pytest.raises(ImageError, match="absent"):
        CliRunner().invoke(initramfs, [str(tmp_path / "image"), *given, "--module", "absent"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("there", "said"), [((), "has no kernel modules"), (("snd.ko",), "none of the kernel modules that a guest")]
)
def test_a_directory_without_what_a_guest_is_driven_by_is_none(
    there: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """Its guest would have neither a disk nor a network, and nobody would know why."""
    (modules := tmp_path / "modules").mkdir()
    for name in there:
        (modules / name).write_bytes(ko(name.removesuffix(".ko")))
    with pytest.raises(ImageError, match=said) as caught:
        build_initramfs(modules=modules, files={"/init": b"#!/bin/sh"})
    assert "/lib/modules/RELEASE" in str(caught.value)
    with pytest.raises(ImageError, match=said):
        CliRunner().invoke(
            initramfs,
            [str(tmp_path / "image"), "--busybox", str(BUSYBOX), "--modules", str(modules)],
            catch_exceptions=False,
        )
    assert not (tmp_path / "image").exists()
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    assert build_initramfs(modules=modules, files={"/init": b"#!/bin/sh"}).modules == ()


def test_files_and_directories_are_added(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/tool").write_bytes(b"#!/bin/sh\n")
    (source / "sub/tool").chmod(0o755)
    (source / "link").symlink_to("sub/tool")
    (tmp_path / "out").mkdir()
    image = build_initramfs(
        files={"/opt": source, "/etc/motd": b"hello\n", "/init": b"#!/opt/sub/tool\n", "/one": source / "sub/tool"}
    )
    out = extract(image, tmp_path / "out")
    assert os.access(out / "opt/sub/tool", os.X_OK)
    assert (out / "opt/link").readlink() == Path("sub/tool")
    assert (out / "etc/motd").read_bytes() == b"hello\n"
    assert os.access(out / "init", os.X_OK)
    assert (out / "one").read_bytes() == b"#!/bin/sh\n"


def test_script_to_run_and_an_init_of_ones_own(tmp_path: Path) -> None:
    image = build_initramfs(init="#!/bin/true\n# \udcff\n", run="echo \udcff")  # paths on it need not be UTF-8
    out = extract(image, tmp_path)
    assert (out / "init").read_bytes() == b"#!/bin/true\n# \xff\n"
    assert (out / "aiovmm/run").read_bytes() == b"#!/bin/sh\necho \xff\n"
    assert os.access(out / "aiovmm/run", os.X_OK)


def lz4(data: bytes) -> bytes:
    return subprocess.run(["lz4", "-d", "-c"], input=data, capture_output=True, check=True, timeout=20).stdout


@pytest.mark.parametrize(
    ("compression", "unpack"),
    [("gzip", gzip.decompress), ("zstd", lambda d: zstandard.ZstdDecompressor().decompress(d)), ("lz4", lz4)],
)
def test_compressed(compression: str, unpack: object) -> None:
    if compression == "lz4" and shutil.which("lz4") is None:
        pytest.skip("no lz4 (package lz4)")
    assert callable(unpack)
    files = {"/init": b"#!x", "/big": bytes(9 << 20)}  # lz4's legacy blocks are 8 MiB
    packed = build_initramfs(files=files, compression=compression)
    assert unpack(packed.data) == build_initramfs(files=files).data


@needs_busybox
def test_the_agent_is_started_by_the_init(tree: Path, tmp_path: Path) -> None:
    image = build_initramfs(busybox=BUSYBOX, modules=tree, agent=agent_binary())
    root = extract(image, tmp_path)
    assert (root / "sbin/aiovmm-agent").read_bytes() == agent_binary().read_bytes()
    assert os.access(root / "sbin/aiovmm-agent", os.X_OK)
    assert "/sbin/aiovmm-agent" in (root / "init").read_text()
    without = build_initramfs(busybox=BUSYBOX, modules=tree)
    assert not [path for path in without.paths if "agent" in path]


def test_nothing_that_could_be_process_1() -> None:
    with pytest.raises(UsageError, match="busybox"):
        build_initramfs(files={"/etc/motd": b"hello"})


def test_unknown_compression() -> None:
    with pytest.raises(UsageError, match="one of none, gzip, lz4, zstd"):
        build_initramfs(files={"/init": b""}, compression="rar")


def test_busybox_that_is_not_static_or_not_busybox(tmp_path: Path) -> None:
    dynamic, other = tmp_path / "dynamic", tmp_path / "other"
    dynamic.write_bytes(elf(also=(INTERP,)))
    other.write_bytes(elf())
    other.chmod(0o755)
    with pytest.raises(ImageError, match=r"not a statically linked.*busybox-static"):
        build_initramfs(busybox=dynamic)
    with pytest.raises(ImageError, match="does not run as busybox"):
        build_initramfs(busybox=other)
    with pytest.raises(ImageError, match="no such file"):
        build_initramfs(busybox=tmp_path / "none")


def test_modules_of_two_kernels(tree: Path) -> None:
    (tree / "kernel/acpi/button.ko").write_bytes(ko("button", release="5.10.0-other"))
    with pytest.raises(ImageError, match="several kernels"):
        build_initramfs(modules=tree, files={"/init": b""})


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        build_initramfs(files={"/init": str(tmp_path / "none")})


def _ask(path: Path, modules: Path, *before: str) -> list[str]:
    """For a process of its own."""
    start = "import signal; from aiovmm.cli import main"
    code = "; ".join([start, *before, "main()"])
    return [
        sys.executable,
        "-c",
        code,
        "image",
        "initramfs",
        str(path),
        "--busybox",
        str(BUSYBOX),
        "--modules",
        str(modules),
    ]


DOOMED = (
    "import resource",
    "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)",
    "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))",
)


@needs_busybox
@pytest.mark.parametrize("is_there", [False, True])
def test_one_whose_making_is_killed_leaves_what_was_there(is_there: bool, tree: Path, tmp_path: Path) -> None:
    """Half of one would be there under its name, and boot nothing."""
    (out := tmp_path / "out").mkdir()
    require_unnamed_files(out)
    if is_there:
        (out / "image").write_bytes(b"the last one")
    done = subprocess.run(_ask(out / "image", tree, *DOOMED), timeout=HANGS, capture_output=True)
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert [path.read_bytes() for path in out.iterdir()] == [b"the last one"] * is_there


@needs_busybox
def test_one_in_the_place_of_another_keeps_its_mode_its_links_and_what_it_is(tree: Path, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    given = ["--busybox", str(BUSYBOX), "--modules", str(tree)]

    def made(name: str) -> bytes:
        assert CliRunner().invoke(initramfs, [str(out / name), *given], catch_exceptions=False).exit_code == 0
        return (out / name).read_bytes()

    whole = made("image")
    (out / "image").write_bytes(b"x")
    (out / "image").chmod(0o640)
    (out / "link").symlink_to("image")
    assert made("link") == whole
    assert (out / "link").is_symlink()
    assert (out / "image").stat().st_mode & 0o777 == 0o640
    (out / "other").hardlink_to(out / "image")
    (out / "image").write_bytes(b"x" * (len(whole) + 1))
    assert made("image") == (out / "other").read_bytes() == whole
    (out / "dangling").symlink_to("new")
    assert made("dangling") == (out / "new").read_bytes() == whole
    with open(out / "new", "r+b") as taken:
        ofdlock.lock(taken.fileno(), shared=False)
        with pytest.raises(ConfigError, match="in use by another program"):
            made("new")
    assert CliRunner().invoke(initramfs, ["/dev/null", *given], catch_exceptions=False).exit_code == 0
    assert Path("/dev/null").is_char_device()
    with pytest.raises(HostError, match=r"write the initramfs: No such file.*absent/image"):
        made("absent/image")
    assert sorted(path.name for path in out.iterdir()) == ["dangling", "image", "link", "new", "other"]
