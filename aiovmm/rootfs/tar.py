"""Tar archives, read from a stream. Pure: `read` gives the bytes, the caller takes each member's content before the next one.

Python's tarfile takes a damaged header for the end of the archive, and reads an extended header into memory however long it
says it is, as many times as there are; here the one is an error and the other is bounded, since a few kilobytes may unpack to
terabytes of headers. Formats: POSIX.1-2001 (pax) with ustar, and what GNU tar writes
by default. Sparse members and volumes are refused by name. Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax
Interchange Format"; tar(5) of libarchive for GNU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["BLOCK", "Member", "TarError", "TarReader"]

BLOCK = 512
_LONGEST_HEADER = (
    1 << 20
)  # bytes of extended ones before a member; the kernel's limits on xattrs and paths make 70 KiB of it
_LARGEST = 1 << 60  # bytes of a member: no offset behind it is beyond what a file has
_PART = 1 << 20
_FILE, _LINK, _SYMLINK, _CHARACTER, _BLOCK_DEVICE, _DIRECTORY, _FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = {
    b"\0": "file",
    _FILE: "file",
    b"7": "file",  # contiguous, which readers treat as a file
    _LINK: "link",
    _SYMLINK: "symlink",
    _CHARACTER: "device",
    _BLOCK_DEVICE: "device",
    _DIRECTORY: "directory",
    _FIFO: "fifo",
}
_REFUSED = {
    b"S": "a sparse file (make the archive without --sparse)",
    b"M": "a file that goes on from another volume",
    b"V": "",  # a volume's label, which is no member
}
_EXTENDED = (b"x", b"g", b"L", b"K", b"V")
_FIELDS = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")
_SPARSE = b"GNU.sparse"
_XATTR = b"SCHILY.xattr."


class TarError(Exception):
    """The archive is damaged, cut short, or of a kind that is not read here; the message says what and where."""


@dataclass
class Member:
    """One member. `kind` is file, directory, link, symlink, device or fifo; `size` bytes of content follow; `mode` is without
    type bits."""

    path: bytes
    kind: str
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class TarReader:
    """`read(n)` gives up to n bytes, none at the end. Iterate over the members, and take content by `content` before going on.

    Raises TarError."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.offset = 0  # of the next byte
        self.ended = False  # by its mark; else the file just was over, between two members
        self._left = 0  # bytes of the current member's content
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        own: dict[bytes, bytes] = {}
        long: dict[str, bytes] = {}
        room = _LONGEST_HEADER
        while (header := self._header()) is not None:
            kind = header[156:157]
            size = _number(header[124:136], "size", self._where)
            if kind in _EXTENDED:
                room -= BLOCK + size
                if room < 0:
                    raise TarError(f"has more than {_LONGEST_HEADER} bytes of extended headers, at {self._where}")
                data = self._whole(size)
            if kind == b"g":
                self._keep(_records(data, self._where))
            elif kind == b"x":
                own = _records(data, self._where)
            elif kind in (b"L", b"K"):
                long["path" if kind == b"L" else "target"] = data.partition(b"\0")[0]
            elif kind != b"V":
                member = self._member(header, kind, size, self._global | own, long)
                own, long, room = {}, {}, _LONGEST_HEADER
                self._start(member.size)
                yield member
                self._skip()
        if own or long:
            raise TarError(f"ends after an extended header, at {self._where}")

    def content(self) -> Iterator[bytes]:
        """The current member's content, in parts."""
        while self._left:
            part = self._exactly(min(self._left, _PART))
            self._left -= len(part)
            yield part

    def pass_over(self) -> int:
        """The current member's content is not read: the caller moves the source by that many bytes."""
        size = self._left + self._padding
        self.offset += size
        self._left = self._padding = 0
        return size

    # -- how

    @property
    def _where(self) -> str:
        return f"byte {self.offset}"

    def _start(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK

    def _skip(self) -> None:
        for _ in self.content():
            pass
        self._exactly(self._padding)
        self._padding = 0

    def _keep(self, records: dict[bytes, bytes]) -> None:
        """What is for all members from here on, as far as they are told by it: the rest would only be more and more."""
        for key, value in records.items():
            if key.startswith(_XATTR):
                raise TarError(f"has extended attributes for all members, at {self._where}")
            if key in _FIELDS or key.startswith(_SPARSE):
                self._global[_SPARSE if key.startswith(_SPARSE) else key] = value

    def _whole(self, size: int) -> bytes:
        self._start(size)
        data = b"".join(self.content())
        self._skip()
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._read(size) if size else b""
        while len(data) < size and (more := self._read(size - len(data))):
            data += more
        self.offset += len(data)
        if len(data) < size:
            raise TarError(f"is cut short, at {self._where}")
        return data

    def _header(self) -> bytes | None:
        """The next header, checked; None at the end, which is a block of zeros, or the end of the file after whole members."""
        first = self._read(1)
        if not first:
            return None
        self.offset += 1
        header = first + self._exactly(BLOCK - 1)
        if not any(header):
            self.ended = True
            return None
        if not _is_summed(header):
            raise TarError(f"has a damaged header, or is no tar archive, at byte {self.offset - BLOCK}")
        return header

    def _member(
        self, header: bytes, kind: bytes, size: int, records: dict[bytes, bytes], long: dict[str, bytes]
    ) -> Member:
        path = records.get(b"path") or long.get("path") or _name(header)
        if kind in _REFUSED or any(key.startswith(_SPARSE) for key in records):
            reason = _REFUSED.get(kind, _REFUSED[b"S"])
            raise TarError(f"has {reason}, at {self._where}")
        if kind not in _KINDS:
            raise TarError(f"has a member of the unknown type {kind.decode('latin-1')!a}, at {self._where}")
        what = _KINDS[kind]
        if what == "file" and path.endswith(b"/"):  # how tars before POSIX wrote directories
            what = "directory"
        if b"size" in records:
            size = _decimal(records[b"size"], "size", self._where)
        if size > _LARGEST:
            raise TarError(f"has a member of {size} bytes, at {self._where}")
        return Member(
            path=path,
            kind=what,
            size=size if what == "file" else 0,
            mode=_number(header[100:108], "mode", self._where) & 0o7777,
            uid=self._id(records, b"uid", header[108:116]),
            gid=self._id(records, b"gid", header[116:124]),
            mtime=self._mtime(records, header[136:148]),
            target=records.get(b"linkpath") or long.get("target") or header[157:257].split(b"\0")[0],
            xattrs={key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)},
        )

    def _id(self, records: dict[bytes, bytes], key: bytes, plain: bytes) -> int:
        number = (
            _decimal(records[key], key.decode(), self._where)
            if key in records
            else _number(plain, key.decode(), self._where)
        )
        if number >= 1 << 32:
            raise TarError(f"has a {key.decode()} of {number}, at {self._where}")
        return number

    def _mtime(self, records: dict[bytes, bytes], plain: bytes) -> int:
        text = records.get(b"mtime", b"").partition(b".")[0]
        if text:
            negative = text.startswith(b"-")
            return 0 if negative else min(_decimal(text, "mtime", self._where), _LATEST)
        return min(_number(plain, "mtime", self._where), _LATEST)


_LATEST = (1 << 63) - 1  # what a file system's 64-bit seconds hold


def _is_summed(header: bytes) -> bool:
    try:
        said = _number(header[148:156], "checksum", "")
    except TarError:
        return False
    bare = header[:148] + b" " * 8 + header[156:]
    signed = sum(bare) - 256 * sum(byte > 127 for byte in bare)  # what some old tars sum
    return said in (sum(bare), signed)


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    is_posix = header[257:263] == b"ustar\0"
    return prefix + b"/" + name if is_posix and prefix else name


def _number(text: bytes, what: str, where: str) -> int:
    """Octal digits, or binary with the highest bit set, as GNU tar and pax both write large ones; a negative one is 0."""
    if text[0] & 0x80:
        return 0 if text[0] & 0x40 else int.from_bytes(bytes((text[0] & 0x3F,)) + text[1:], "big")
    digits = text.split(b"\0")[0].strip()
    if not digits:
        return 0
    if not digits.isdigit() or any(digit > 0x37 for digit in digits):
        raise TarError(f"has a {what} that is no number, at {where}")
    return int(digits, 8)


def _decimal(text: bytes, what: str, where: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"has a {what} that is no number, at {where}")
    return int(text)


def _records(data: bytes, where: str) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE\\n`, one after the other."""
    records = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 8)
        digits = data[at:blank]
        size = int(digits) if blank > at and digits.isdigit() else 0
        record = data[blank + 1 : at + size]
        key, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or at + size > len(data):
            raise TarError(f"has a damaged extended header, at {where}")
        records[key] = value[:-1]
        at += size
    return records
