"""EROFS, the kernel's read-only file system, as a tree becomes one: inodes, names and small files together, after the blocks of
the large ones. Nothing is compressed: guests share the host's page cache, and none of them spends its processor on it.

That no root and no tool is needed, that owners, modes, links and capabilities are what the image says, and that equal trees give
equal bytes, is why it is written here: mke2fs of most distributions takes a directory alone, whose files belong to who runs it.

    block 0 (superblock at 1024) │ content of files, blocks of large directories │ inodes, each with its xattrs and its tail

Source: fs/erofs/erofs_fs.h of Linux; Documentation/filesystems/erofs.rst. Only what every kernel since 5.4 reads is used:
extended inodes, plain and inline data, blocks of 4 KiB.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiovmm.rootfs.blocks import BLOCK, Blocks
from aiovmm.rootfs.tree import Node, Tree, TreeError

__all__ = ["FIRST_BLOCK", "write_erofs"]

FIRST_BLOCK = 1
"""What comes before the content of files: the superblock's block."""

_MAGIC = 0xE0F5E1E2
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_SUPER_OFFSET = 1024
_HAS_MTIME = 2  # feature_compat
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_EXTENDED = 1
_PLAIN, _INLINE = 0, 2  # data layouts
_SLOT = 32  # what an inode's number counts
_DIRENT = struct.Struct("<QHBx")
_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFIFO: 5, stat.S_IFLNK: 7}
_XATTR_HEADER = bytes(12)
_XATTRS = ((b"user.", 1), (b"security.", 6))  # prefixes that stand as a number
_LONGEST_INLINE = 2048
_NO_BLOCK = 0xFFFFFFFF
_BATCH = 1 << 20


@dataclass(eq=False)
class _Inode:
    """A node with its place: `position` in bytes from the start of the metadata."""

    node: Node
    parent: _Inode | None
    serial: int
    xattrs: bytes
    names: list[tuple[bytes, _Inode]] = field(default_factory=list)
    chunks: list[list[tuple[bytes, _Inode]]] = field(default_factory=list)  # of a directory, a block each
    size: int = 0
    inline: int = 0
    block: int = _NO_BLOCK
    position: int = 0

    @property
    def number(self) -> int:
        return self.position // _SLOT


def write_erofs(tree: Tree, blocks: Blocks, fd: int) -> None:
    """Complete the image in `fd`, where `blocks` has the files' content already. Raises TreeError, OSError."""
    inodes = _inodes(tree)
    for inode in inodes:
        _plan(inode, blocks)
    start, size = blocks.end, _place(inodes)
    for inode in inodes:
        if inode.block != _NO_BLOCK and not stat.S_ISREG(inode.node.mode):
            _write_all(fd, _data(inode)[: inode.size - inode.inline], inode.block * BLOCK)
    end = start + -(-size // BLOCK)
    _write_metadata(fd, inodes, start * BLOCK, end * BLOCK)
    os.pwrite(fd, _superblock(inodes, start, end), _SUPER_OFFSET)
    os.ftruncate(fd, end * BLOCK)


def _inodes(tree: Tree) -> list[_Inode]:
    """One for each node, however many names it has; the root first."""
    made: dict[Node, _Inode] = {}

    def inode_of(node: Node, parent: _Inode | None) -> _Inode:
        if node not in made:
            made[node] = _Inode(node, parent, len(made) + 1, _xattrs(node))
        return made[node]

    pending = [inode_of(tree.root, None)]
    while pending:
        inode = pending.pop()
        for name in sorted(inode.node.children):
            child = inode_of(inode.node.children[name], inode)
            inode.names.append((name, child))
            if child.node.is_directory:
                pending.append(child)
    return list(made.values())


# -- where everything goes


def _plan(inode: _Inode, blocks: Blocks) -> None:
    """Its size, what of it stands inline, and its blocks."""
    node = inode.node
    if stat.S_ISREG(node.mode):
        content = node.content
        inode.size, inode.inline = content.size, len(content.tail)
        inode.block = content.block if content.count else _NO_BLOCK
        return
    if node.is_directory:
        inode.chunks = _chunks(inode)
        inode.size = BLOCK * (len(inode.chunks) - 1) + sum(_DIRENT.size + len(name) for name, _ in inode.chunks[-1])
    elif stat.S_ISLNK(node.mode):
        inode.size = len(node.target)
    tail = inode.size % BLOCK
    inode.inline = tail if tail <= _LONGEST_INLINE else 0
    if inode.size > inode.inline:
        inode.block = blocks.end
        blocks.end += -(-(inode.size - inode.inline) // BLOCK)


def _chunks(inode: _Inode) -> list[list[tuple[bytes, _Inode]]]:
    """A directory's names, those of each block: the kernel looks for the block by its first name, and then in it."""
    names = sorted([(b".", inode), (b"..", inode.parent or inode), *inode.names], key=lambda pair: pair[0])
    chunks: list[list[tuple[bytes, _Inode]]] = [[]]
    room = BLOCK
    for name, child in names:
        needed = _DIRENT.size + len(name)
        if needed > room:
            chunks.append([])
            room = BLOCK
        chunks[-1].append((name, child))
        room -= needed
    return chunks


def _place(inodes: list[_Inode]) -> int:
    """Positions of all inodes; the size of it all. None crosses a block; number 0 is nobody's, for some take it for "no file"."""
    position = 2 * _SLOT
    for inode in inodes:
        size = _INODE.size + len(inode.xattrs) + inode.inline
        if position % BLOCK + size > BLOCK:
            position += -position % BLOCK
        inode.position = position
        position += size + -size % _SLOT
    return position


# -- what is written


def _data(inode: _Inode) -> bytes:
    """A directory's blocks, or a link's target."""
    if not inode.node.is_directory:
        return inode.node.target
    parts = []
    for chunk in inode.chunks:
        parts.append(b"".join(_block(chunk)).ljust(BLOCK, b"\0"))
    return b"".join(parts)[: inode.size]


def _block(chunk: list[tuple[bytes, _Inode]]) -> Iterator[bytes]:
    offset = _DIRENT.size * len(chunk)
    for name, child in chunk:
        yield _DIRENT.pack(child.number, offset, _TYPES[stat.S_IFMT(child.node.mode)])
        offset += len(name)
    yield from (name for name, _ in chunk)


def _write_metadata(fd: int, inodes: list[_Inode], start: int, end: int) -> None:
    """In large parts, and to the end of the last block."""
    out, at = bytearray(), start
    for inode in inodes:
        out += bytes(start + inode.position - at - len(out))
        out += _record(inode)
        if len(out) > _BATCH:
            _write_all(fd, out, at)
            at += len(out)
            out = bytearray()
    out += bytes(end - at - len(out))
    _write_all(fd, out, at)


def _record(inode: _Inode) -> bytes:
    node = inode.node
    layout = _INLINE if inode.inline else _PLAIN
    links = node.names
    if node.is_directory:
        links = 2 + sum(child.node.is_directory for _, child in inode.names)
    count = (len(inode.xattrs) - len(_XATTR_HEADER)) // 4 + 1 if inode.xattrs else 0
    block = 0 if stat.S_ISFIFO(node.mode) else inode.block
    fixed = (_EXTENDED | layout << 1, count, node.mode, 0, inode.size, block, inode.serial)
    head = _INODE.pack(*fixed, node.uid, node.gid, node.mtime, 0, links)
    return head + inode.xattrs + _tail(inode)


def _tail(inode: _Inode) -> bytes:
    if not inode.inline:
        return b""
    if stat.S_ISREG(inode.node.mode):
        return inode.node.content.tail
    return _data(inode)[inode.size - inode.inline :]


def _xattrs(node: Node) -> bytes:
    entries = bytearray()
    for name, value in sorted(node.xattrs.items()):
        for prefix, number in _XATTRS:
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                entries += struct.pack("<BBH", len(rest), number, len(value)) + rest + value
                entries += bytes(-len(entries) % 4)
    if not entries:
        return b""
    if len(entries) > BLOCK - _INODE.size - _LONGEST_INLINE - len(_XATTR_HEADER):
        raise TreeError(f"a file has {len(entries)} bytes of extended attributes, which are more than fit beside it")
    return _XATTR_HEADER + bytes(entries)


def _superblock(inodes: list[_Inode], start: int, end: int) -> bytes:
    counts = (len(inodes), 0, 0, end, start, 0)  # inodes, time of building (2), blocks, metadata, xattrs
    return _SUPER.pack(
        _MAGIC, 0, _HAS_MTIME, 12, 0, inodes[0].number, *counts, bytes(16), bytes(16), 0, 0, 0, 0, 0, 0, 0, 0
    )


def _write_all(fd: int, data: bytes | bytearray, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        at += written
        view = view[written:]
