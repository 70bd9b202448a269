"""One tar archive onto a tree: a layer with its whiteouts, or a whole root."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.tar import Member, TarReader
from aiovmm.rootfs.tree import Node, Tree, TreeError

__all__ = ["LeftOut", "apply_archive", "kept_xattrs"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_LONGEST_XATTR = 255  # bytes of its name
_OF_AUFS = b".wh..wh."  # its own affairs, which say nothing of files


@dataclass
class LeftOut:
    """What an image does not get, counted: device nodes, since the guest has its own /dev, and one of an image could also be an
    overlay's mark for a file that is gone; extended attributes but for user's and capabilities."""

    devices: int = 0
    xattrs: set[str] = field(default_factory=set)


def kept_xattrs(xattrs: dict[bytes, bytes], left_out: LeftOut) -> dict[bytes, bytes]:
    """Those of `xattrs` that a guest gets: none by which an overlay or a security module would be told something."""
    kept = {}
    for name, value in xattrs.items():
        if (name.startswith(b"user.") and not name.startswith(b"user.overlay.")) or name == b"security.capability":
            if len(name) > _LONGEST_XATTR or len(value) >= 1 << 16:
                raise TreeError("a file has an extended attribute that is longer than Linux has them")
            kept[name] = value
        else:
            left_out.xattrs.add(name.decode(errors="replace"))
    return kept


def apply_archive(tree: Tree, blocks: Blocks, reader: TarReader, left_out: LeftOut, *, is_layer: bool) -> None:
    """All members of `reader`; with `is_layer` those that say what is gone, too. Raises TarError, TreeError, TooLarge."""
    tree.level += 1
    devices: set[bytes] = set()  # of this archive, which later members may be other names of
    for member in reader:
        parent, _, name = member.path.rstrip(b"/").rpartition(b"/")
        if is_layer and name.startswith(_WHITEOUT):
            _take_away(tree, parent, name)
        elif member.kind == "device" or (
            member.kind == "link" and _plain(member.target) in devices and tree.find(member.target) is None
        ):
            left_out.devices += 1
            devices.add(_plain(member.path))
        elif member.kind == "link":
            tree.link(member.path, member.target)
        else:
            tree.add(member.path, _node(member, blocks, reader, left_out))


def _plain(path: bytes) -> bytes:
    return b"/".join(name for name in path.split(b"/") if name not in (b"", b"."))


def _take_away(tree: Tree, parent: bytes, name: bytes) -> None:
    if name == _OPAQUE:
        tree.opaque(parent)
    elif name == _WHITEOUT:
        raise TreeError("a whiteout names nothing")
    elif not name.startswith(_OF_AUFS):
        tree.whiteout(parent + b"/" + name[len(_WHITEOUT) :])


_TYPES = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO}


def _node(member: Member, blocks: Blocks, reader: TarReader, left_out: LeftOut) -> Node:
    mode = 0o777 if member.kind == "symlink" else member.mode
    node = Node(_TYPES[member.kind] | mode, member.uid, member.gid, member.mtime)
    node.xattrs = kept_xattrs(member.xattrs, left_out)
    if member.kind == "symlink":
        node.target = member.target
    elif member.kind == "file":
        node.content = blocks.store(member.size, reader.content())
    return node
