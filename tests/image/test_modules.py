from __future__ import annotations

import gzip
import lzma
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from aiovmm.errors import ImageError
from aiovmm.image.modules import Module, ModuleTree
from tests.boot.images import COMPRESSORS
from tests.image.conftest import RELEASE, ko


def names(tree: ModuleTree, *wanted: str) -> list[str]:
    return [m.name for m in tree.load_order(wanted)]


def test_each_module_comes_after_what_it_needs(tree: Path) -> None:
    assert names(ModuleTree(tree), "virtio_blk", "virtio_pci") == ["virtio_ring", "virtio", "virtio_blk", "virtio_pci"]


def test_dashes_and_underscores_are_the_same(tree: Path) -> None:
    assert names(ModuleTree(tree), "virtio-rng") == names(ModuleTree(tree), "virtio_rng")


def test_soft_dependencies_before_it_are_taken_if_they_exist(tree: Path) -> None:
    assert names(ModuleTree(tree), "ext4") == ["jbd2", "crc32c", "ext4"]


def test_what_is_built_in_is_not_loaded(tree: Path) -> None:
    (tree / "kernel/fs/virtiofs.ko").write_bytes(ko("virtiofs", depends="virtio,fuse"))
    assert names(ModuleTree(tree), "virtiofs", "af_packet") == ["virtio_ring", "virtio", "virtiofs"]


def test_flat_directory(tree: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in tree.rglob("*.ko"):
        shutil.copy(path, flat)
    assert names(ModuleTree(flat), "virtio_pci") == ["virtio_ring", "virtio", "virtio_pci"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".xz", lambda d: lzma.compress(d, check=lzma.CHECK_CRC32)),
        (".gz", gzip.compress),
        (".zst", lambda d: zstandard.ZstdCompressor().compress(d)),
    ],
)
def test_compressed_modules(suffix: str, pack: object, tree: Path) -> None:
    assert callable(pack)
    path = tree / "kernel/drivers/virtio/virtio.ko"
    original = path.read_bytes()
    path.with_name("virtio.ko" + suffix).write_bytes(pack(original))
    path.unlink()
    modules = ModuleTree(tree)
    assert modules.module("virtio").data == original
    assert names(modules, "virtio_pci") == ["virtio_ring", "virtio", "virtio_pci"]


def test_what_a_module_says_of_itself(tree: Path) -> None:
    module = ModuleTree(tree).module("virtio_blk")
    assert module.release == RELEASE
    assert module.aliases == ["virtio:d00000002v*"]


def test_missing_module_and_missing_dependency(tree: Path) -> None:
    (tree / "kernel/drivers/virtio/virtio_ring.ko").unlink()
    with pytest.raises(ImageError, match="no kernel module nonsense"):
        names(ModuleTree(tree), "nonsense")
    with pytest.raises(ImageError, match="no kernel module virtio_ring"):
        names(ModuleTree(tree), "virtio_pci")


def test_cycle(tree: Path) -> None:
    (tree / "kernel/drivers/virtio/virtio_ring.ko").write_bytes(ko("virtio_ring", depends="virtio"))
    with pytest.raises(ImageError, match="virtio -> virtio_ring -> virtio"):
        names(ModuleTree(tree), "virtio")


@pytest.mark.parametrize(("name", "data"), [("virtio.ko.xz", b"not xz"), ("virtio.ko", b"not ELF"), ("virtio.ko", b"")])
def test_damaged_module(name: str, data: bytes, tree: Path) -> None:
    (tree / "kernel/drivers/virtio/virtio.ko").unlink()
    (tree / "kernel/drivers/virtio" / name).write_bytes(data)
    with pytest.raises(ImageError, match=r"virtio\.ko"):
        ModuleTree(tree).module("virtio")


@pytest.mark.parametrize(("suffix", "compression"), [(".xz", "xz"), (".zst", "zstd"), (".gz", "gzip")])
def test_packed_module_cut_short(suffix: str, compression: str, tree: Path) -> None:
    """Not even the last bytes may be missing: nothing else would tell that a copy ended early."""
    (tree / "kernel/drivers/virtio/virtio.ko").unlink()
    path = tree / f"kernel/drivers/virtio/virtio.ko{suffix}"
    packed = COMPRESSORS[compression](ko("virtio", depends="virtio_ring"))
    path.write_bytes(packed)
    assert ModuleTree(tree).module("virtio").depends == ["virtio_ring"]
    for size in (len(packed) - 1, len(packed) - 5, len(packed) // 2):
        path.write_bytes(packed[:size])
        with pytest.raises(
            ImageError, match=rf"virtio\.ko{suffix}: cannot be unpacked: its {compression} data is damaged"
        ):
            ModuleTree(tree).module("virtio")


def test_module_cut_short_has_no_dependencies_but_does_not_break_us() -> None:
    whole = ko("virtio", depends="x")
    for size in range(16, len(whole), 7):
        assert Module("virtio", whole[:size]).depends in ([], ["x"])


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a directory"):
        ModuleTree(tmp_path / "none")


LIMITS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = {
    0x28: 8,
    0x3A: 2,
    0x3C: 2,
    0x3E: 2,
}  # of the file header: where sections are, their size, count, and their names
SECTION_NUMBERS = {0: 4, 24: 8, 32: 8}  # name, offset, size


@pytest.mark.parametrize("number", LIMITS)
def test_module_whose_headers_name_any_place(number: int) -> None:
    good = ko("virtio")
    table = int.from_bytes(good[0x28:0x30], "little")
    places = NUMBERS | {table + 64 * i + at: width for i in (1, 2) for at, width in SECTION_NUMBERS.items()}
    for at, width in places.items():
        data = bytearray(good)
        data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        assert Module("virtio", bytes(data)).release in ("", RELEASE)


@pytest.mark.parametrize(
    "pack", [lzma.compress, gzip.compress, zstandard.ZstdCompressor().compress], ids=["xz", "gz", "zst"]
)
def test_module_that_unpacks_without_end(
    pack: Callable[[bytes], bytes], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovmm.image.modules._LARGEST", 1 << 20)
    suffix = {lzma.compress: ".xz", gzip.compress: ".gz"}.get(pack, ".zst")
    bomb = tree / ("kernel/bomb.ko" + suffix)
    bomb.write_bytes(pack(b"\x7fELF\x02" + bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(ImageError, match="bomb"):
        ModuleTree(tree).module("bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_modules_that_need_each_other_without_end(tree: Path) -> None:
    for i in range(3000):
        (tree / f"kernel/m{i}.ko").write_bytes(ko(f"m{i}", depends=f"m{i + 1}"))
    with pytest.raises(ImageError, match="in a row"):
        names(ModuleTree(tree), "m0")
