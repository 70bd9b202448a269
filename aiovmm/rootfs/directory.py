"""A directory of the host onto a tree. It is only read; links in it are copied and never followed, nor is one that somebody, a
guest that shares it, puts in the place of a directory meanwhile."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aiovmm.errors import ImageError
from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.layer import LeftOut, kept_xattrs
from aiovmm.rootfs.limits import DEEPEST
from aiovmm.rootfs.tree import Node, Tree

__all__ = ["add_directory", "fingerprint"]

_PART = 1 << 20
_SETTLED = 2.0  # seconds after which a file that is written again has another time for sure
_ANY = 1 << 62  # entries: a tree has its own limit
_KEPT = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)


def fingerprint(root: Path, entries: int) -> tuple[str, bool]:
    """What changes when anything below `root` does, and whether it can be relied on later: not if a file changed just now, which
    might change again within the same tick of the file system's clock. Raises ImageError, for more than `entries`, too."""
    digest = hashlib.sha256()
    newest = 0
    for path, status, _ in _walk(root, entries):
        fields = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_ino, status.st_dev)
        digest.update(path + b"\0%r" % (repr((*fields, status.st_mtime_ns, status.st_ctime_ns)).encode(),))
        newest = max(newest, status.st_ctime_ns)
    return digest.hexdigest(), time.time_ns() - newest > _SETTLED * 1e9


def add_directory(tree: Tree, blocks: Blocks, root: Path, left_out: LeftOut) -> None:
    """All below `root` on its file system. Whoever builds is root in the guest, if he is not root here: as in a user namespace,
    his files are root's. Raises ImageError, TreeError, TooLarge."""
    tree.begin_layer()
    first: dict[tuple[int, int], bytes] = {}
    for path, status, directory in _walk(root, _ANY):
        if stat.S_IFMT(status.st_mode) not in _KEPT:
            left_out.devices += not stat.S_ISSOCK(status.st_mode)
            continue
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if identity in first:
                tree.link(path, first[identity])
                continue
            first[identity] = path
        try:
            tree.add(path, _node(directory, path, status, blocks, left_out))
        except OSError as exc:
            raise _unreadable(root, path, exc) from exc


def _walk(root: Path, entries: int) -> Iterator[tuple[bytes, os.stat_result, int]]:
    """Paths below `root`, itself first as b"", parents first, in an order of their own; with what is at each and, until the next
    is asked for, the directory that it is in. Not more than `entries`, nor deeper than an image may be: who shares it may put any
    number there, and each level costs all above it again."""
    directory, left = b"", entries
    try:
        base = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            top = os.fstat(base)
            yield b"", top, base
            pending = [b""]
            while pending:
                directory = pending.pop()
                for path, status, fd in _listed(base, directory, left):
                    left -= 1
                    yield path, status, fd
                    if stat.S_ISDIR(status.st_mode) and status.st_dev == top.st_dev:
                        pending.append(path)
        finally:
            os.close(base)
    except NotADirectoryError as exc:
        if directory:
            raise _unreadable(root, directory, exc) from exc
        raise ImageError(str(root), "is not a directory") from exc
    except OSError as exc:
        raise _unreadable(root, directory, exc) from exc


def _listed(base: int, directory: bytes, most: int) -> Iterator[tuple[bytes, os.stat_result, int]]:
    fd = os.dup(base)
    try:
        for name in directory.split(b"/") if directory else ():
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        with os.scandir(fd) as there:
            names = [os.fsencode(entry.name) for entry in islice(there, most + 1)]
        if len(names) > most:
            raise ImageError(os.fsdecode(directory) or ".", "has more entries than an image may have")
        if names and directory.count(b"/") + 1 >= DEEPEST and directory:
            raise ImageError(os.fsdecode(directory), f"is more than {DEEPEST} directories in each other")
        for name in sorted(names):
            yield os.path.join(directory, name), os.stat(name, dir_fd=fd, follow_symlinks=False), fd
    finally:
        os.close(fd)


def _node(directory: int, path: bytes, status: os.stat_result, blocks: Blocks, left_out: LeftOut) -> Node:
    mode = status.st_mode
    node = Node(mode, _mapped(status.st_uid, os.getuid()), _mapped(status.st_gid, os.getgid()))
    node.mtime = max(0, int(status.st_mtime))
    if stat.S_ISLNK(mode):
        node.target = os.readlink(os.path.basename(path), dir_fd=directory)
        node.mode = stat.S_IFLNK | 0o777
    elif stat.S_ISREG(mode):
        _read_file(directory, path, status, node, blocks, left_out)
    return node


def _read_file(
    directory: int, path: bytes, status: os.stat_result, node: Node, blocks: Blocks, left_out: LeftOut
) -> None:
    fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        there = os.fstat(fd)
        if (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino):
            raise ImageError(os.fsdecode(path), "was replaced while the image was made", "try again when it rests")
        node.content = blocks.store(status.st_size, _parts(fd, status.st_size, path))
        node.xattrs = kept_xattrs(_xattrs(fd), left_out)
    finally:
        os.close(fd)


def _parts(fd: int, size: int, path: bytes) -> Iterator[bytes]:
    left = size
    while left:
        part = os.read(fd, min(left, _PART))
        if not part:
            raise ImageError(os.fsdecode(path), "got shorter while the image was made", "try again when it rests")
        left -= len(part)
        yield part


def _xattrs(fd: int) -> dict[bytes, bytes]:
    try:
        return {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd)}
    except OSError:  # a file system without
        return {}


def _mapped(owner: int, own: int) -> int:
    return 0 if own and owner == own else owner


def _unreadable(root: Path, path: bytes, exc: OSError) -> ImageError:
    where = os.path.join(root, os.fsdecode(path)) if path else str(root)
    hint = "be root, or have who owns it make a tar of it" if isinstance(exc, PermissionError) else ""
    return ImageError(where, f"cannot be read: {exc.strerror}", hint)
