"""Whatever bytes a kernel file holds, the answer is an image or an ImageError, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aiovmm.boot import load_kernel
from aiovmm.errors import ImageError
from aiovmm.memory import GuestMemory
from tests.boot.images import COMPRESSORS, KERNEL_ADDRESS, bzimage, elf, payload

SMALL = elf([(KERNEL_ADDRESS, b"code" * 50, 4096)], pvh=KERNEL_ADDRESS)
SEEDS = [SMALL, *(bzimage(payload(SMALL, c)) for c in COMPRESSORS)]
PATCHES = st.lists(st.tuples(st.integers(0, 0x280), st.binary(min_size=1, max_size=8)), max_size=6)
PAYLOAD_PATCHES = st.lists(st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=8)), max_size=3)


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


@pytest.mark.parametrize(
    "magic", [b"\x7fELF\x02\x01\x01", b"\x1f\x8b", b"BZh9", b"\x5d\x00\x00", b"\xfd7zXZ\x00", b"\x02\x21\x4c\x18"]
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(min_size=1, max_size=300))
def test_noise_behind_each_magic(magic: bytes, noise: bytes, tmp_path: Path) -> None:
    attempt(magic + noise, tmp_path)
    attempt(bzimage(magic + noise), tmp_path)
