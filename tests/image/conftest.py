from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.images import bzimage, elf, payload

GOOD = bzimage(payload(elf(), "gzip"))
RELEASE = "6.1.0-test"
MakeModule = Callable[..., bytes]


def ko(
    name: str, *, depends: str = "", extra: tuple[str, ...] = (), release: str = RELEASE, machine: int = 62
) -> bytes:
    """A module as far as anyone outside the kernel reads it: an ELF relocatable with a .modinfo section."""
    info = [f"name={name}", f"depends={depends}", f"vermagic={release} SMP mod_unload", "license=GPL", *extra]
    modinfo = b"".join(i.encode() + b"\0" for i in info)
    names = b"\0.modinfo\0.shstrtab\0"
    body = modinfo + names
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(modinfo), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(modinfo), len(names), 0, 0, 1, 0),
    ]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 2)
    return head + body + b"".join(sections)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of modules with dependencies, as a package unpacks it; no depmod has run."""
    root = tmp_path / "modules"
    modules = {
        "drivers/virtio/virtio.ko": ko("virtio", depends="virtio_ring"),
        "drivers/virtio/virtio_ring.ko": ko("virtio_ring"),
        "drivers/virtio/virtio_pci.ko": ko(
            "virtio_pci", depends="virtio_ring,virtio", extra=("alias=pci:v00001AF4d*",)
        ),
        "drivers/block/virtio_blk.ko": ko(
            "virtio_blk", depends="virtio_ring,virtio", extra=("alias=virtio:d00000002v*",)
        ),
        "drivers/char/virtio-rng.ko": ko("virtio_rng", depends="virtio", extra=("alias=virtio:d00000004v*",)),
        "fs/ext4.ko": ko("ext4", depends="jbd2", extra=("softdep=pre: crc32c absent post: later", "alias=fs-ext4")),
        "fs/jbd2.ko": ko("jbd2"),
        "lib/crc32c.ko": ko("crc32c"),
        "lib/later.ko": ko("later"),
        "acpi/button.ko": ko("button"),
    }
    for path, data in modules.items():
        (root / "kernel" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "kernel" / path).write_bytes(data)
    (root / "modules.builtin").write_text("kernel/fs/fuse/fuse.ko\nkernel/net/packet/af_packet.ko\n")
    return root


def install(root: Path, release: str, data: bytes = GOOD, *, modules: bool = True) -> Path:
    path = root / f"boot/vmlinuz-{release}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if modules:
        (root / f"lib/modules/{release}/kernel").mkdir(parents=True)
    return path


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of PATH but the shell's own tools; scripts named apt-cache, apt-get, dpkg-deb go there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    script(tools, "apt-cache", "exit 100")
    script(tools, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    script(tools, "dpkg-deb", "exit 2")
    return tools


def script(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
