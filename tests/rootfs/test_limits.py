"""Numbers of archives and documents at their limits: all is refused by the error that is meant for it, or becomes an image."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.rootfs.blocks import TooLarge
from aiovmm.rootfs.documents import DocumentError, parse_configuration, parse_manifest, select_manifest, select_saved
from aiovmm.rootfs.limits import Limits
from aiovmm.rootfs.tar import TarError, TarReader
from aiovmm.rootfs.tree import TreeError
from tests.at_limits import NUMBERS
from tests.rootfs.conftest import Made, archive, directory, file, hardlink, symlink

FIELDS = {"mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12)} | {
    "devmajor": (329, 8),
    "devminor": (337, 8),
}
KINDS = [b"0", b"\0", *(bytes([kind]) for kind in b"1234567xgLKSDMVX"), b"\xff"]
WHOLE = archive(file("first", b"x" * 700), directory("d"), symlink("l", "d"), hardlink("h", "first"))


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def binary(number: int, width: int) -> bytes:
    """GNU's: the first byte is 0x80, or 0xFF of a negative one."""
    sign = 0xFF if number < 0 else 0x80
    return bytes([sign]) + (number % (1 << 8 * (width - 1))).to_bytes(width - 1, "big")


def written(number: int, width: int) -> Iterator[bytes]:
    """In all ways that there is room for."""
    if 0 <= number < 8 ** (width - 1):
        yield octal(number, width)
    yield binary(number, width)


def summed(header: bytes) -> bytes:
    """With a checksum that is right."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def with_fields(data: bytes, fields: dict[str, bytes], kind: bytes | None = None) -> bytes:
    """The first header of `data`."""
    header = bytearray(data[:512])
    for name, value in fields.items():
        at, width = FIELDS[name]
        assert len(value) == width
        header[at : at + width] = value
    if kind is not None:
        header[156:157] = kind
    return summed(bytes(header)) + data[512:]


def with_records(**records: Any) -> bytes:
    """An extended header before a file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x" * 50)
        info.size = 700
        info.pax_headers = {name.replace("__", "."): str(value) for name, value in records.items()}
        tar.addfile(info, io.BytesIO(bytes(700)))
    return out.getvalue()


def read_or_refused(data: bytes) -> None:
    with suppress(TarError):
        for member in (reader := TarReader(io.BytesIO(data).read)):
            assert member.kind
            for piece in reader.content():
                assert len(piece) <= 1 << 20


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_with_a_number_at_its_limit(field: str) -> None:
    for number in NUMBERS:
        for value in written(number, FIELDS[field][1]):
            for kind in KINDS:
                read_or_refused(with_fields(WHOLE, {field: value}, kind))


NUMBER = st.sampled_from(NUMBERS) | st.integers(-(2**64), 2**64)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), st.tuples(NUMBER, st.booleans()), min_size=1),
    st.sampled_from(KINDS),
)
def test_headers_with_several(numbers: dict[str, tuple[int, bool]], kind: bytes) -> None:
    fields = {name: (list(written(number, FIELDS[name][1])) * 2)[first] for name, (number, first) in numbers.items()}
    read_or_refused(with_fields(WHOLE, fields, kind))


RECORDS = ["size", "uid", "gid", "mtime", "atime", "GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.realsize"]


@pytest.mark.parametrize("record", [*RECORDS, "GNU.sparse.numblocks"])
def test_an_extended_header_with_a_number_at_its_limit(record: str) -> None:
    for number in (*NUMBERS, "1.5", "nan", "1e400", "", "\u0663", " 1", "+1", "1_0", "9" * 5000):
        read_or_refused(with_records(**{record.replace(".", "__"): number}))


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "mtime", "devmajor", "size"])
def test_what_is_read_can_be_written(field: str, tmp_path: Path) -> None:
    """An image is made of it, in which numbers have less room, or it is refused: whatever a reader takes, the writer bears."""
    for number in NUMBERS:
        records = [with_records(**{field: number})] if field not in ("mode", "devmajor") else []
        headers = [
            with_fields(WHOLE, {field: value}, kind)
            for value in written(number, FIELDS[field][1])
            for kind in (b"0", b"3")
        ]
        for data in [*records, *headers]:
            with suppress(TarError, TooLarge, TreeError):
                Made(tmp_path / "image", [data], Limits(size=1 << 20))


# -- documents

DIGEST = "sha256:" + "0" * 64
DESCRIPTOR = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": DIGEST, "size": 7}
LAYER = {**DESCRIPTOR, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
PLATFORM = {"architecture": "amd64", "os": "linux"}
DOCUMENTS: dict[str, tuple[Any, Any]] = {
    "manifest": (parse_manifest, {"schemaVersion": 2, "config": DESCRIPTOR, "layers": [LAYER, LAYER]}),
    "index": (
        lambda data: select_manifest(data, "amd64", None),
        {"schemaVersion": 2, "manifests": [{**DESCRIPTOR, "platform": PLATFORM, "annotations": {"a": "b"}}]},
    ),
    "saved": (lambda data: select_saved(data, "a:1"), [{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]),
    "configuration": (
        parse_configuration,
        {
            **PLATFORM,
            "config": {"Env": ["A=B"], "Cmd": ["c"], "Entrypoint": ["e"], "WorkingDir": "/", "User": "1:2"},
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        },
    ),
}
ODD: list[Any] = [
    *NUMBERS,
    0.5,
    float("inf"),
    float("nan"),
    True,
    None,
    "",
    "\0",
    "\ud800",
    "9" * 5000,
    "x" * 100_000,
    [],
    {},
    [[]],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(document: Any, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return odd
    changed = copy.deepcopy(document)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = odd
    return changed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_with_anything_in_any_place(name: str) -> None:
    parse, good = DOCUMENTS[name]
    parse(json.dumps(good).encode())
    for place in places(good):
        for odd in ODD:
            with suppress(DocumentError):
                parse(json.dumps(put(good, place, odd)).encode())


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b'{"size":1e999', b"\xff\xfe[\0"])
def test_a_document_that_is_none(name: str, text: bytes) -> None:
    with pytest.raises(DocumentError):
        DOCUMENTS[name][0](text)
