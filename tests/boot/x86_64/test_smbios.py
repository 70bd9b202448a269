"""SMBIOS as its readers take it apart: one written from the specification here, and dmidecode."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.x86_64 import layout
from aiovmm.boot.x86_64.smbios import ENTRY_SIZE, SmbiosMachine, smbios
from aiovmm.errors import ConfigError

AT, END = layout.SMBIOS, layout.SMBIOS_END
ID = UUID("12345678-9abc-def0-1234-567890abcdef")
GIB = 1 << 30
WHOLE = SmbiosMachine(
    b"Maker",
    b"Product",
    b"v1",
    b"ds=nocloud",
    ID.bytes,
    b"sku",
    b"kin",
    b"tag",
    (b"io.systemd.credential:motd=hello", b"two"),
    packages=2,
    cores=3,
    threads=6,
    ram=((0, 3 * GIB), (4 * GIB, 61 * GIB)),
)


def structures(data: bytes) -> list[tuple[int, int, bytes, list[bytes]]]:
    """(type, handle, formatted part, strings) of each, up to and with the end marker; found by the entry point."""
    assert data[:5] == b"_SM3_"
    assert sum(data[: data[6]]) % 256 == 0
    size, address = struct.unpack_from("<IQ", data, 12)
    table = data[address - AT : address - AT + size]
    assert address == AT + ENTRY_SIZE
    found = []
    while table:
        length = table[1]
        end = table.index(b"\0\0", length) + 2
        texts = table[length : end - 2].split(b"\0") if end - 2 > length else []
        found.append((table[0], int.from_bytes(table[2:4], "little"), table[:length], texts))
        table = table[end:]
    assert found[-1][0] == 127
    return found


def test_each_type_is_there_with_what_was_said() -> None:
    found = structures(smbios(WHOLE, AT, END))
    assert [kind for kind, *_ in found] == [0, 1, 3, 4, 4, 11, 16, 17, 19, 19, 32, 127]
    by_kind = {kind: (body, texts) for kind, _, body, texts in reversed(found)}
    body, texts = by_kind[1]
    assert [texts[body[at] - 1] for at in (4, 5, 6, 7, 25, 26)] == [
        b"Maker",
        b"Product",
        b"v1",
        b"ds=nocloud",
        b"sku",
        b"kin",
    ]
    assert UUID(bytes_le=body[8:24]) == ID
    assert by_kind[11] == (by_kind[11][0], [b"io.systemd.credential:motd=hello", b"two"])
    assert (by_kind[4][0][0x23], by_kind[4][0][0x25]) == (3, 6)
    assert struct.unpack_from("<Q", by_kind[16][0], 15) == (64 * GIB,)
    assert [struct.unpack_from("<II", body, 4) for kind, _, body, _ in found if kind == 19] == [
        (0, (3 * GIB >> 10) - 1),
        (4 * GIB >> 10, (65 * GIB >> 10) - 1),
    ]


def test_what_is_not_said_has_no_string() -> None:
    body, texts = next((b, t) for kind, _, b, t in structures(smbios(SmbiosMachine(), AT, END)) if kind == 1)
    assert texts == [b"aiovmm", b"aiovmm"]
    assert (body[6], body[7], body[25], body[26], body[8:24]) == (0, 0, 0, 0, bytes(16))


@given(
    st.lists(st.binary(min_size=1, max_size=40).map(lambda b: b.replace(b"\0", b"x")), max_size=600),
    st.integers(1, 4096),
    st.lists(st.integers(1, 1 << 30), max_size=8),
)
def test_any_number_of_strings_packages_and_pieces_is_read_back(
    texts: list[bytes], packages: int, sizes: list[int]
) -> None:
    ram = tuple((n << 44, size << 12) for n, size in enumerate(sizes))
    found = structures(smbios(SmbiosMachine(oem_strings=tuple(texts), packages=packages, ram=ram), AT, END))
    assert [text for kind, _, _, strings in found if kind == 11 for text in strings] == texts
    assert all(body[4] == len(strings) for kind, _, body, strings in found if kind == 11)
    handles = [handle for _, handle, _, _ in found]
    assert len(set(handles)) == len(handles)
    ends = [
        struct.unpack_from("<QQ", body, 15) if body[4:8] == b"\xff" * 4 else struct.unpack_from("<II", body, 4)
        for kind, _, body, _ in found
        if kind == 19
    ]
    assert len(ends) == len(ram)
    for (gpa, size), (first, last) in zip(ram, ends, strict=True):
        assert (first, last) in ((gpa >> 10, (gpa + size - 1) >> 10), (gpa, gpa + size - 1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is room for 49120"):
        smbios(SmbiosMachine(oem_strings=(b"x" * 48000, b"y" * 2000)), AT, END)


def dmidecode(machine: SmbiosMachine, directory: Path) -> str:
    if shutil.which("dmidecode") is None:
        pytest.skip("dmidecode is not installed: apt-get install dmidecode")
    dump = bytearray(smbios(machine, AT, END))
    struct.pack_into("<Q", dump, 16, ENTRY_SIZE)  # a dump has its structures at an offset in the file
    dump[5] = 0
    dump[5] = -sum(dump[:24]) & 0xFF
    (directory / "dump").write_bytes(dump)
    done = subprocess.run(
        ["dmidecode", "--from-dump", directory / "dump"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_dmidecode_reads_it_without_a_complaint(tmp_path: Path) -> None:
    text = dmidecode(WHOLE, tmp_path)
    for line in (
        "SMBIOS 3.3.0 present.",
        "System is a virtual machine",
        "Product Name: Product",
        f"UUID: {ID}",
        "Asset Tag: tag",
        "String 1: io.systemd.credential:motd=hello",
        "Core Count: 3",
        "Thread Count: 6",
        "Maximum Capacity: 64 GB",
        "Size: 64 GB",
        "Range Size: 61 GB",
        "No errors detected",
        "End Of Table",
    ):
        assert line in text
    for complaint in ("BAD INDEX", "OUT OF SPEC", "Wrong", "TRUNCATED", "broken", "Invalid", "<"):
        assert complaint not in text


@pytest.mark.parametrize("size", [2 << 20, (2 << 20) + 4096, 31 * GIB, 32 * GIB - (1 << 20), 32 * GIB, 5 << 40])
def test_dmidecode_reads_any_size_of_memory(tmp_path: Path, size: int) -> None:
    text = dmidecode(SmbiosMachine(ram=((0, size),)), tmp_path)
    words = {1: "kB", 2: "MB", 3: "GB", 4: "TB"}
    shift = max(n for n in words if size % (1 << 10 * n) == 0)
    assert f"\tSize: {size >> 10 * shift} {words[shift]}\n" in text
