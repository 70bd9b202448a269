"""Whatever bytes a kernel file holds, the answer is an image or an ImageError, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aiovmm.boot.x86_64 import load_kernel
from aiovmm.errors import ImageError
from aiovmm.memory import GuestMemory
from tests.boot.images import COMPRESSORS, KERNEL_ADDRESS, bzimage, elf, payload

SMALL = elf([(KERNEL_ADDRESS, b"code" * 50, 4096)], pvh=KERNEL_ADDRESS)
SEEDS = [SMALL, *(bzimage(payload(SMALL, c)) for c in COMPRESSORS)]
LIMITS = [n.to_bytes(8, "little") for n in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)]
SETUP_FIELDS = {
    0x1F1: 1,
    0x1F4: 4,
    0x201: 1,
    0x206: 2,
    0x22C: 4,
    0x236: 2,
    0x238: 4,
    0x248: 4,
    0x24C: 4,
    0x258: 8,
    0x260: 4,
}
PATCH = st.binary(min_size=1, max_size=8) | st.sampled_from(LIMITS)
PATCHES = st.lists(st.tuples(st.integers(0, 0x280), PATCH), max_size=6)
PAYLOAD_PATCHES = st.lists(st.tuples(st.integers(0, 1500), PATCH), max_size=3)


def attempt(data: bytes, directory: Path) -> None:
    path = directory / "kernel"
    path.write_bytes(data)
    memory = GuestMemory.create([(0, 32 << 20)])
    refusal = str(path)
    try:
        load_kernel(path, cache=directory / "cache").load_into(memory)
    except ImageError as exc:
        refusal = str(exc)
    finally:
        memory.close()
    assert str(path) in refusal


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.sampled_from(SEEDS), patches=PATCHES, inner=PAYLOAD_PATCHES, keep=st.integers(0, 8000))
@example(seed=SMALL, patches=[], inner=[], keep=100)
def test_damaged_headers_and_payloads(
    seed: bytes, patches: list[tuple[int, bytes]], inner: list[tuple[int, bytes]], keep: int, tmp_path: Path
) -> None:
    data = bytearray(seed)
    for offset, patch in [*patches, *((0x800 + o, p) for o, p in inner)]:
        data[offset : offset + len(patch)] = patch
    attempt(bytes(data), tmp_path)
    attempt(bytes(data[:keep]) or b"\0", tmp_path)


@pytest.mark.parametrize("compression", ["gzip", "lz4"])
@pytest.mark.parametrize("offset", SETUP_FIELDS)
def test_every_setup_field_at_every_limit(offset: int, compression: str, tmp_path: Path) -> None:
    for packed in (payload(SMALL, compression), b""):
        for number in LIMITS:
            data = bytearray(bzimage(packed))
            data[offset : offset + SETUP_FIELDS[offset]] = number[: SETUP_FIELDS[offset]]
            attempt(bytes(data), tmp_path)


@pytest.mark.parametrize(
    "magic", [b"\x7fELF\x02\x01\x01", b"\x1f\x8b", b"BZh9", b"\x5d\x00\x00", b"\xfd7zXZ\x00", b"\x02\x21\x4c\x18"]
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(min_size=1, max_size=300))
def test_noise_behind_each_magic(magic: bytes, noise: bytes, tmp_path: Path) -> None:
    attempt(magic + noise, tmp_path)
    attempt(bzimage(magic + noise), tmp_path)
