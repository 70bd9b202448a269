"""Images of other formats are not taken for raw ones, and a guest cannot make a raw one look like them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.devices.virtio.formats import HEADERS, SECTOR, Header, Place, format_of, last_sector
from aiovmm.errors import ImageError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import contents, header, segments, submit, write

SIZE = 1 << 20
SECTORS = SIZE // SECTOR
KINDS = [IoKind.AUTO, IoKind.THREADS]
COMMENTS = b"# no header\n  \r\n\n#\n"
EACH = pytest.mark.parametrize("magic", HEADERS, ids=lambda h: f"{h.format}-{h.magic[:4].hex()}-{h.place.name}")


def sector_of(magic: Header) -> bytes:
    """A sector as an image of that format has it."""
    before = COMMENTS if magic.place is Place.AFTER_COMMENTS else bytes(magic.offset)
    return (before + magic.magic).ljust(SECTOR, b"\x5a")


def place_of(magic: Header) -> int:
    """The sector in which it means something."""
    return SECTORS - 1 if magic.place is Place.LAST else 0


def found(path: Path) -> str | None:
    """The format of what is in a file."""
    data = contents(path)
    return format_of(data[:SECTOR], data[last_sector(len(data)) :])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xa5" * SIZE)
    return path


# -- images that are there


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img (qemu-utils) is missing")
@pytest.mark.parametrize(
    ("kind", "format_"),
    [
        (["qcow2"], "qcow2"),
        (["vpc"], "VHD"),
        (["vpc", "-o", "subformat=fixed,force_size=on"], "VHD"),
        (["vhdx"], "VHDX"),
        (["vmdk"], "VMDK"),
        (["vmdk", "-o", "subformat=monolithicFlat"], "VMDK"),
        (["qed"], "QED"),
        (["vdi"], "VDI"),
        (["parallels"], "Parallels"),
    ],
    ids=lambda v: "-".join(v[:1] + v[2:]) if isinstance(v, list) else "",
)
@pytest.mark.parametrize("readonly", [False, True])
def test_what_qemu_makes_is_refused_with_the_remedy(
    kind: list[str], format_: str, readonly: bool, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", *kind, path, "4M"], check=True)
    before = path.read_bytes()
    with pytest.raises(ImageError, match=f"is a {format_} image.*qemu-img convert -O raw.*image_type=raw"):
        DiskImage.open(path, readonly=readonly)
    assert path.read_bytes() == before
    image = DiskImage.open(path, readonly=readonly, raw=True)
    assert image.size == len(before)
    image.close()


@pytest.mark.parametrize(
    "content", [b"", b"\x55", bytes(511) + b"\xaa", b"\xeb\x63\x90".ljust(4096, b"\0"), b"LUKS\xba\xbe"]
)
def test_what_is_raw(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    DiskImage.open(tmp_path / "image").close()


@EACH
def test_each_header_is_known_where_it_means_something(magic: Header, tmp_path: Path) -> None:
    image = tmp_path / "image"
    for size in (SECTOR, 3 * SECTOR - 100):
        data = bytearray(size)
        at = last_sector(size) if magic.place is Place.LAST else 0
        data[at : at + SECTOR] = sector_of(magic)[: size - at]
        image.write_bytes(data)
        with pytest.raises(ImageError, match=f"is a {magic.format} image"):
            DiskImage.open(image)


@pytest.mark.parametrize(
    "text", [b"#" * SECTOR + b"\nversion=1\n", b"# version=1\n", b" version=1\n", b"#\nv\nversion=1\n", b"\n" * SECTOR]
)
def test_text_that_is_no_descriptor(text: bytes) -> None:
    assert format_of(text) is None


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img (qemu-utils) is missing")
@pytest.mark.parametrize("before", [b"", b"# anything\n", b" \n#\n"])
def test_a_guest_cannot_have_a_file_of_the_host_read(before: bytes, path: Path, tmp_path: Path) -> None:
    """To QEMU, which examines what is said to be nothing, a descriptor is one by its text, whatever comments it has."""
    (tmp_path / "secret").write_bytes(b"secret".ljust(SECTOR))
    lines = 'version=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "secret" 0\n'
    text = (before + lines.encode()).ljust(SECTOR, b"\0")
    convert = ["qemu-img", "convert", "-O", "raw", str(path), str(tmp_path / "out")]
    path.write_bytes(text.ljust(SIZE, b"\0"))
    subprocess.run(convert, check=True)
    assert (tmp_path / "out").read_bytes()[:6] == b"secret", "which is what must not be"
    path.write_bytes(bytes(SIZE))

    async def guest() -> Status:
        async with Harness(BlkDevice(DiskImage.open(path))) as h:
            return (await submit(h, Request.OUT, 0, text))[0]

    assert asyncio.run(guest()) is Status.IOERR
    subprocess.run(convert, check=True)
    assert (tmp_path / "out").read_bytes() == bytes(SIZE)


# -- what a guest writes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [False, True])
@EACH
async def test_a_guest_cannot_write_the_header_of_another_format(
    magic: Header, direct: bool, kind: IoKind, path: Path
) -> None:
    before = contents(path)
    try:
        image = DiskImage.open(path, direct=direct)
    except OSError as exc:
        pytest.skip(f"O_DIRECT: {exc}")
    sector, place = sector_of(magic), place_of(magic)
    async with Harness(BlkDevice(image, io=kind)) as h:
        for more in (0, 4096, 600 << 10):
            data = bytes(more) + sector if place else sector + bytes(more)
            assert (await submit(h, Request.OUT, place - more // SECTOR if place else 0, data))[0] is Status.IOERR
        q = h.queues[0]
        cut = magic.offset + 2
        q.add([header(Request.OUT, place), sector[:cut], sector[cut:]], [1])  # in pieces, the magic too
        q.kick()
        assert (await q.used())[0].data == bytes([Status.IOERR])
        await write(h, 1, sector)  # elsewhere it means nothing
    assert contents(path) == before[:512] + sector + before[1024:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("size", [512, 4096, 600 << 10])
async def test_all_else_goes_to_the_first_and_the_last_sector(
    size: int, direct: bool, kind: IoKind, path: Path
) -> None:
    data = os.urandom(size)
    try:
        image = DiskImage.open(path, direct=direct)
    except OSError as exc:
        pytest.skip(f"O_DIRECT: {exc}")
    async with Harness(BlkDevice(image, io=kind)) as h:
        await write(h, 0, data)
        assert contents(path) == data + b"\xa5" * (SIZE - size)
        await write(h, (SIZE - size) // SECTOR, data)
    assert contents(path) == (data + b"\xa5" * (SIZE - size))[: SIZE - size] + data


@pytest.mark.parametrize("kind", KINDS)
async def test_who_says_that_it_is_raw_may_write_all(kind: IoKind, path: Path) -> None:
    async with Harness(BlkDevice(DiskImage.open(path, raw=True), io=kind)) as h:
        await write(h, 0, sector_of(HEADERS[0]))
    assert contents(path)[:512] == sector_of(HEADERS[0])


@EACH
async def test_a_guest_that_changes_its_buffer_after_the_look(magic: Header, path: Path) -> None:
    """What was looked at is not what is there when the data is taken: it is looked at again, in a buffer of our own."""
    disk = BlkDevice(DiskImage.open(path), io=IoKind.THREADS)
    innocent = b"innocent".ljust(512, b"!")
    async with Harness(disk) as h:
        engine = disk._engine
        assert engine is not None
        memory = h.memory.read(0x1000, 1 << 16)
        submit_: Callable[..., Any] = engine.submit

        def change(*arguments: Any, **named: Any) -> Any:
            at = 0x1000 + h.memory.read(0x1000, len(memory)).index(innocent[:8])
            h.memory.write(at, sector_of(magic))
            return submit_(*arguments, **named)

        engine.submit = change  # type: ignore[method-assign]
        await submit(h, Request.OUT, place_of(magic), innocent)
    begin = place_of(magic) * SECTOR
    assert contents(path)[begin : begin + SECTOR] == bytes(SECTOR)


async def test_who_has_the_guest_hears_what_it_was_refused_and_what_allows_it(path: Path) -> None:
    async with Harness(BlkDevice(DiskImage.open(path))) as h:
        await submit(h, Request.OUT, 0, sector_of(HEADERS[0]))
        (error,) = h.reported
    assert "writing the disk image: Operation not permitted" in str(error)
    assert "image_type=raw" in str(error)


requests = st.one_of(
    st.tuples(
        st.just(Request.OUT),
        st.sampled_from([0, 1, 2, SECTORS - 2, SECTORS - 1]),
        st.one_of(st.binary(min_size=512, max_size=512), st.sampled_from(HEADERS).map(sector_of)),
    ),
    st.tuples(
        st.sampled_from([Request.DISCARD, Request.WRITE_ZEROES]),
        st.just(0),
        st.tuples(st.integers(0, 2), st.integers(0, 3)).map(lambda e: segments((*e, 0))),
    ),
)


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(requests, max_size=8), kind=st.sampled_from(KINDS))
def test_no_sequence_of_requests_makes_it_look_like_one(
    wanted: list[tuple[Request, int, bytes]], kind: IoKind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("image") / "disk.img"
    path.write_bytes(bytes(SIZE))

    async def guest() -> None:
        async with Harness(BlkDevice(DiskImage.open(path), io=kind)) as h:
            for request, sector, data in wanted:
                await submit(h, request, sector, data)

    asyncio.run(guest())
    assert found(path) is None
    DiskImage.open(path).close()
