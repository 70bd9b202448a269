"""Build an initramfs: busybox, the kernel modules a guest of ours needs, an init, and whatever files are wanted besides.

The archive is not compressed by default: four megabytes, which the host copies into guest memory in about a millisecond, while
the guest's kernel would unpack it on its own time, and on one processor before init. Compress it to store or to ship it: zstd
makes it a third as large, and every format here is one that stock kernels unpack.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import lz4.block
import zstandard

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.boot.elf import is_static, machine_name
from aiovmm.errors import ImageError, UsageError
from aiovmm.image.cpio import CpioArchive
from aiovmm.image.modules import Module, ModuleTree

__all__ = ["AGENT", "GUEST_MODULES", "Initramfs", "build_initramfs"]

GUEST_MODULES = (
    "virtio_iommu",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "virtio_mem",
    "virtio_pmem",
    "nd_pmem",
    "virtiofs",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "af_packet",
    "nvme",
    "button",
    "gpio_keys",
    "pvpanic_pci",
    "virtio_rtc",
    "evdev",
)
"""Drivers for every device of the monitor; those that are built in or do not exist in a kernel are left out."""

AGENT = "/sbin/aiovmm-agent"
"""Where the agent is in an initramfs with one."""

_ALWAYS_LOADED = ("button", "evdev")  # evdev has no device id that it could be found by
_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "sysroot", "etc", "var", "mnt", "usr/bin", "usr/sbin")
_NEEDED_APPLETS = frozenset(
    (
        "sh",
        "mount",
        "umount",
        "modprobe",
        "setsid",
        "start-stop-daemon",
        "stty",
        "timeout",
        "sed",
        "dd",
        "od",
        "poweroff",
        "reboot",
    )
)
_PROFILE = b"PS1='\\h:\\w\\$ '\nexport PS1\n"
_LZ4_BLOCK = 8 << 20
_MOST_NAMES = 1 << 16  # bytes of the names of busybox's applets


@dataclass(frozen=True)
class Initramfs:
    """The archive as it goes to the kernel, and what is in it."""

    data: bytes
    paths: tuple[str, ...]
    modules: tuple[str, ...]
    release: str


def build_initramfs(
    *,
    busybox: str | os.PathLike[str] | None = None,
    modules: str | os.PathLike[str] | None = None,
    wanted: Iterable[str] = GUEST_MODULES,
    required: Iterable[str] = (),
    files: Mapping[str, str | os.PathLike[str] | bytes] | None = None,
    init: str | bytes | None = None,
    run: str | None = None,
    agent: str | os.PathLike[str] | None = None,
    compression: str = "none",
) -> Initramfs:
    """An initramfs from a static `busybox`, and of the modules in the directory `modules` those `wanted` that there are, and all
    `required`.

    `files` adds {path in the guest: host path (file, or directory with all below it) or content}; `init` replaces our init;
    `run` is a shell script that our init runs first (see init.sh); `agent` is the program that runs commands for the host
    (aiovmm.agent.agent_binary()), which our init starts; `compression` is none, gzip, lz4 or zstd.
    Without busybox, `files` must bring /init or /bin/sh. Raises ImageError and UsageError.
    """
    if compression not in _COMPRESSORS:
        raise UsageError(f"compression {compression!r}: one of {', '.join(_COMPRESSORS)}")
    archive = _skeleton()
    runs = _add_busybox(archive, Path(busybox)) if busybox is not None else None
    required = tuple(required)
    if required and modules is None:
        raise UsageError(f"module {required[0]}: there is no directory of modules to take it from")
    loaded = _add_modules(archive, ModuleTree(modules), wanted, required) if modules is not None else []
    if runs is not None and loaded and loaded[0].machine != runs.elf[2]:
        reason = f"is a program for {runs.title}, and the modules are for {machine_name(loaded[0].machine)}"
        raise ImageError(os.fspath(busybox or ""), reason, "give a busybox and modules of one architecture")
    for path, source in (files or {}).items():
        _add_file(archive, path, source)
    if run is not None:
        archive.file("/aiovmm/run", b"#!/bin/sh\n" + os.fsencode(run) + b"\n", 0o755)
    if agent is not None:
        archive.file(AGENT, _read(Path(agent)), 0o755)
    if init is not None:
        archive.file("/init", _bytes(init), 0o755)
    elif "/init" not in archive:
        if "/bin/sh" not in archive:
            raise UsageError("an initramfs needs a busybox, or files that bring /init or /bin/sh")
        archive.file("/init", _script("init.sh"), 0o755)
    data = _COMPRESSORS[compression](archive.build())
    names = tuple(m.name for m in loaded)
    return Initramfs(data, archive.paths, names, loaded[0].release if loaded else "")


def _skeleton() -> CpioArchive:
    archive = CpioArchive()
    for path in _DIRECTORIES:
        archive.directory(path)
    archive.character_device("/dev/console", 5, 1)  # the kernel opens it for init, before anything is mounted
    archive.character_device("/dev/null", 1, 3, 0o666)
    archive.file("/etc/profile", _PROFILE)
    archive.file("/etc/aiovmm/console", _script("console.sh"), 0o755)
    archive.file("/etc/aiovmm/session", _script("session.sh"), 0o755)
    archive.file("/etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("/etc/group", b"root:x:0:\n")
    return archive


def _script(name: str) -> bytes:
    return resources.files("aiovmm.image").joinpath(name).read_bytes()


def _bytes(text: str | bytes) -> bytes:
    return os.fsencode(text) if isinstance(text, str) else text


def _add_busybox(archive: CpioArchive, path: Path) -> Architecture:
    """busybox and a symlink for each of its applets, so that the guest need not make them; what it runs on."""
    data = _read(path)
    runs = next((known for known in architecture.ALL if is_static(data, known)), None)
    if runs is None:
        raise ImageError(str(path), "is not a statically linked program", "apt-get install busybox-static")
    archive.file("/bin/busybox", data, 0o755)
    for applet in _applets(path, data, runs):
        if applet != "busybox":
            archive.symlink(f"/bin/{applet}", "busybox")
    archive.symlink("/sbin/modprobe", "../bin/busybox")  # where the kernel looks for it
    return runs


def _applets(path: Path, data: bytes, runs: Architecture) -> list[str]:
    applets = _told(path) if runs is architecture.host() else _read_from(data)
    missing = _NEEDED_APPLETS - set(applets)
    if missing:
        raise ImageError(str(path), f"lacks the applets {', '.join(sorted(missing))}", "apt-get install busybox-static")
    return applets


def _told(path: Path) -> list[str]:
    """The applets of a busybox that runs here."""
    try:
        done = subprocess.run([path, "--list"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ImageError(str(path), f"does not run as busybox: {exc}", "apt-get install busybox-static") from exc
    return [line.rpartition("/")[2] for line in done.stdout.decode(errors="replace").split()]


def _read_from(data: bytes) -> list[str]:
    """Those of one that does not: its table of names, sorted, each with its NUL (applet_names of include/applet_tables.h)."""
    start = data.find(b"[\0[[\0")  # whatever lies before it
    names: list[str] = []
    for word in data[start : start + _MOST_NAMES].split(b"\0") if start >= 0 else []:
        name = word.decode(errors="replace")
        if not name or (names and name <= names[-1]):
            break
        names.append(name)
    return names


def _add_modules(
    archive: CpioArchive, tree: ModuleTree, wanted: Iterable[str], required: Iterable[str]
) -> list[Module]:
    """The modules, flat in /lib/modules/RELEASE, with the modules.dep and modules.alias that modprobe reads."""
    wanted = tuple(wanted)
    order = tree.load_order([*(name for name in wanted if name in tree), *required])
    if not order and not tree.builtin and (wanted or not tree.names):
        reason = "has none of the kernel modules that a guest is driven by" if tree.names else "has no kernel modules"
        hint = (
            "give the directory of one kernel, as /lib/modules/RELEASE; its modules.builtin says what needs no module"
        )
        raise ImageError(str(tree.directory), reason, hint)
    releases = {m.release for m in order}
    if len(releases) > 1:
        raise ImageError(str(tree.directory), f"holds modules of several kernels: {', '.join(sorted(releases))}")
    if not order:
        return []
    root = f"/lib/modules/{order[0].release}"
    for module in order:
        archive.file(f"{root}/{module.name}.ko", module.data)
    archive.file(f"{root}/modules.dep", _modules_dep(tree, order).encode())
    aliases = [f"alias {pattern} {m.name}\n" for m in order for pattern in m.aliases]
    archive.file(f"{root}/modules.alias", "".join(aliases).encode())
    always = [m.name for m in order if m.name in _ALWAYS_LOADED]
    archive.file("/etc/aiovmm/modules", "".join(f"{name}\n" for name in always).encode())
    return order


def _modules_dep(tree: ModuleTree, order: list[Module]) -> str:
    """One line a module: all it needs, nearest first, as depmod writes it (modprobe loads a line from its end)."""
    lines = []
    for module in order:
        needs = [m.name for m in tree.load_order([module.name])][-2::-1]
        lines.append(f"{module.name}.ko:" + "".join(f" {n}.ko" for n in needs) + "\n")
    return "".join(lines)


def _add_file(archive: CpioArchive, path: str, source: str | os.PathLike[str] | bytes) -> None:
    if isinstance(source, bytes):
        archive.file(path, source, 0o755 if source.startswith((b"#!", b"\x7fELF")) else 0o644)
        return
    host = Path(source)
    if host.is_symlink():
        archive.symlink(path, os.readlink(host))
    elif host.is_dir():
        archive.directory(path, stat.S_IMODE(host.stat().st_mode))
        for child in _children(host):
            _add_file(archive, f"{path}/{child.name}", child)
    else:
        archive.file(path, _read(host), stat.S_IMODE(host.stat().st_mode))


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as exc:
        raise ImageError(str(directory), f"cannot be listed: {exc.strerror}") from exc


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError(str(path), "is not a file" if path.exists() else "no such file")
        return path.read_bytes()
    except OSError as exc:
        raise ImageError(str(path), f"cannot be read: {exc.strerror}") from exc


def _lz4_legacy(data: bytes) -> bytes:
    """The legacy frame, the only one that the kernel unpacks (lib/decompress_unlz4.c)."""
    out = bytearray(b"\x02\x21\x4c\x18")
    for start in range(0, len(data), _LZ4_BLOCK):
        block = lz4.block.compress(data[start : start + _LZ4_BLOCK], mode="high_compression", store_size=False)
        out += struct.pack("<I", len(block)) + block
    return bytes(out)


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "lz4": _lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor(level=19).compress(data),
}
