"""The header of an overlay: what is written is read, and nothing else is believed."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.header import (
    COPY_SIZE,
    MAX_SIZE,
    BaseKind,
    Header,
    Identity,
    layout,
    newest,
)
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.errors import ImageError
from tests.at_limits import everywhere, several

U64 = st.integers(0, (1 << 64) - 1)


def identities() -> st.SearchStrategy[Identity]:
    return st.builds(
        Identity,
        st.sampled_from(BaseKind),
        st.integers(1, MAX_SIZE),
        st.integers(-(1 << 63), (1 << 63) - 1),
        U64,
        st.binary(min_size=16, max_size=16),
    )


@given(
    sectors=st.integers(1, MAX_SIZE // 512),
    identity=identities(),
    uuid=st.binary(min_size=16, max_size=16),
    name=st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name),
)
def test_a_new_one_is_read_as_it_was_made(sectors: int, identity: Identity, uuid: bytes, name: bytes) -> None:
    header = layout(sectors * 512, identity, Path(name.decode(errors="surrogateescape")), uuid)
    assert Header.parse(header.pack(), "x") == header
    clusters = -(-header.size // (1 << header.shift))
    assert header.map_size * 8 >= clusters, "the map has no room for the disk"
    assert header.map_size <= 32 << 20


def sealed(copy: bytes) -> bytes:
    """With a checksum that is right."""
    body = copy[: COPY_SIZE - 4]
    return body + zlib.crc32(body).to_bytes(4, "little")


SOUND = layout(1 << 30, Identity(BaseKind.FILE, 1 << 30, 5, 7), Path("base"), bytes(16))


def check_taken_or_refused(copy: bytes, mended: bool) -> None:
    try:
        header = Header.parse(copy, "x")
    except ImageError:
        return
    if not mended:
        assert header == SOUND
    assert 0 < header.size <= MAX_SIZE
    assert header.map_at >= 2 * COPY_SIZE
    assert header.map_at + header.map_used <= header.data_at <= 1 << 40
    assert header.map_size <= 64 << 20
    assert 12 <= header.shift <= 16
    assert header.data_at % (1 << header.shift) == 0
    assert header.map_used * 8 << header.shift >= header.size


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=12), st.booleans())
def test_a_damaged_one_is_refused_or_makes_sense(damage: list[tuple[int, int]], mend: bool) -> None:
    """Whoever made it, checksum and all: what is taken has a map within the file, before the data."""
    copy = bytearray(SOUND.pack())
    for at, value in damage:
        copy[at] = value
    check_taken_or_refused(sealed(bytes(copy)) if mend else bytes(copy), mend)


@given(st.binary(max_size=2 * COPY_SIZE))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        newest(data, "x")
    with pytest.raises(ImageError):
        Header.parse((b"aiovmmOV" + data).ljust(COPY_SIZE, b"\0")[:COPY_SIZE], "x")


def test_of_two_copies_the_newer_one_that_is_whole_counts() -> None:
    newer = replace(SOUND, generation=2, size=1 << 29)
    assert newest(SOUND.pack() + newer.pack(), "x") == newer
    assert newest(newer.pack() + SOUND.pack(), "x") == newer
    torn = newer.pack()[:512] + SOUND.pack()[512:]
    assert newest(SOUND.pack() + torn, "x") == SOUND
    with pytest.raises(ImageError, match="damaged"):
        newest(torn + torn, "x")


@pytest.mark.parametrize("how", ["cut", "empty", "directory", "raw", "random"])
def test_files_that_are_none(tmp_path: Path, how: str) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(1 << 20))
    OverlayImage.open_over(open_base(base), top).close()
    data = top.read_bytes()
    if how == "cut":
        top.write_bytes(data[:-1])
    elif how == "directory":
        top.unlink()
        top.mkdir()
    else:
        top.write_bytes({"empty": b"", "raw": bytes(1 << 20)}.get(how, random.Random(1).randbytes(1 << 16)))
    with pytest.raises(ImageError, match="cut short" if how == "cut" else "is no overlay"):
        OverlayImage.open_over(open_base(base), top)
    OverlayImage.open_over(open_base(base), tmp_path / "other").close()


@pytest.mark.parametrize("mend", [False, True])
def test_numbers_at_their_limits(mend: bool) -> None:
    for copy in everywhere(SOUND.pack()[:128]):
        whole = copy + SOUND.pack()[128:]
        check_taken_or_refused(sealed(whole) if mend else whole, mend)


@given(several(SOUND.pack()[:128]))
def test_several_numbers_at_their_limits(copy: bytes) -> None:
    check_taken_or_refused(sealed(copy + SOUND.pack()[128:]), True)
