"""Whatever bytes an arm64 kernel file holds, the answer is an image or an ImageError, in bounded memory."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aiovmm.boot.aarch64 import load_kernel, ram_ranges
from aiovmm.errors import ImageError
from aiovmm.memory import GuestMemory
from tests.boot.aarch64.images import NAMES, image, zboot
from tests.boot.images import COMPRESSORS

SMALL = image(b"code" * 50)
PACKED = [pack(SMALL) for name, pack in COMPRESSORS.items() if name != "none"]
ZBOOTS = [zboot(SMALL, name) for name in NAMES]
LIMITS = [0, 1, 63, 64, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
IMAGE_FIELDS = {8: 8, 16: 8, 24: 8, 0x38: 4, 0x3C: 4}
ZBOOT_FIELDS = {0: 4, 4: 4, 8: 4, 12: 4, 24: 8, 0x38: 4, 0x3C: 4, 0x40: 4, 0x44: 2}
NUMBERS = st.sampled_from(LIMITS).map(lambda n: n.to_bytes(8, "little"))
PATCHES = st.lists(st.tuples(st.integers(0, 0x60), st.binary(min_size=1, max_size=8) | NUMBERS), max_size=5)


def attempt(data: bytes, directory: Path) -> None:
    path = directory / "kernel"
    path.write_bytes(data)
    memory = GuestMemory.create(ram_ranges(32 << 20))
    refusal = str(path)
    try:
        load_kernel(path, cache=directory / "cache").load_into(memory)
    except ImageError as exc:
        refusal = str(exc)
    finally:
        memory.close()
    assert str(path) in refusal


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.sampled_from([SMALL, *PACKED, *ZBOOTS]), patches=PATCHES, inner=PATCHES, keep=st.integers(0, 6000))
@example(seed=SMALL, patches=[], inner=[], keep=63)
def test_damaged_headers_and_payloads(
    seed: bytes, patches: list[tuple[int, bytes]], inner: list[tuple[int, bytes]], keep: int, tmp_path: Path
) -> None:
    data = bytearray(seed)
    for offset, patch in [*patches, *((0x1000 + o, p) for o, p in inner)]:
        data[offset : offset + len(patch)] = patch
    attempt(bytes(data), tmp_path)
    attempt(bytes(data[:keep]) or b"\0", tmp_path)


@pytest.mark.parametrize("offset", IMAGE_FIELDS)
def test_every_field_of_an_image_at_every_limit(offset: int, tmp_path: Path) -> None:
    size = IMAGE_FIELDS[offset]
    for number in LIMITS:
        data = bytearray(SMALL)
        data[offset : offset + size] = number.to_bytes(8, "little")[:size]
        attempt(bytes(data), tmp_path)
        attempt(gzip.compress(bytes(data)), tmp_path)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("offset", ZBOOT_FIELDS)
def test_every_field_of_zboot_at_every_limit(offset: int, compression: str, tmp_path: Path) -> None:
    size = ZBOOT_FIELDS[offset]
    for number in LIMITS:
        data = bytearray(zboot(SMALL, compression))
        data[offset : offset + size] = number.to_bytes(8, "little")[:size]
        attempt(bytes(data), tmp_path)


@pytest.mark.parametrize(
    "magic",
    [
        b"MZ\0\0zimg",
        b"\x1f\x8b",
        b"BZh9",
        b"\x5d\x00\x00",
        b"\xfd7zXZ\x00",
        b"\x02\x21\x4c\x18",
        b"\x28\xb5\x2f\xfd",
        b"\x89LZO",
    ],
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(min_size=1, max_size=300))
def test_noise_behind_each_magic(magic: bytes, noise: bytes, tmp_path: Path) -> None:
    attempt(magic + noise, tmp_path)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "lz4", "zstd", "lzma"])
def test_what_unpacks_without_end_is_not_unpacked(compression: str, tmp_path: Path) -> None:
    """Neither zeros, which are no kernel, nor a kernel that goes on behind what it says: 64 MiB of them are never there."""
    endless = bytes(64 << 20)
    for start in (b"", image(b"", size=4096)):
        packed = COMPRESSORS[compression](start + endless)
        path = tmp_path / "kernel"
        path.write_bytes(packed)
        del packed
        tracemalloc.start()
        try:
            with pytest.raises(ImageError):
                load_kernel(path, cache=tmp_path / "cache")
            assert tracemalloc.get_traced_memory()[1] < 48 << 20, "a dictionary of 32 MiB and a little"
        finally:
            tracemalloc.stop()


def test_a_zboot_image_in_itself(tmp_path: Path) -> None:
    """One layer is taken off, and what is not an Image then is none."""
    attempt(zboot(zboot(SMALL)), tmp_path)
    attempt(zboot(gzip.compress(SMALL)), tmp_path)
    attempt(struct.pack("<2s2x4s", b"MZ", b"zimg"), tmp_path)
