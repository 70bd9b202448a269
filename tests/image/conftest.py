from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

RELEASE = "6.1.0-test"
MakeModule = Callable[..., bytes]


def ko(name: str, *, depends: str = "", extra: tuple[str, ...] = (), release: str = RELEASE) -> bytes:
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
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 2)
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
