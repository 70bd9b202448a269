"""One tar archive onto a tree: a layer with its whiteouts, or a whole root."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from aiovmm.rootfs.blocks import Blocks
from aiovmm.rootfs.tar import Member, TarReader
from aiovmm.rootfs.tree import Node, Tree, TreeError

__all__ = ["LeftOut", "apply_archive", "kept_xattrs", "leave_out_devices"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_LONGEST_XATTR = 255  # bytes of its name
_MOST_LEFT_OUT = 1000
_OF_AUFS = b".wh..wh."  # its own affairs, which say nothing of files


@dataclass
class LeftOut:
    """What an image does not get, counted: device nodes, since the guest has its own /dev, and one of an image could also be an
    overlay's mark for a file that is gone; extended attributes but for user's and capabilities."""

    devices: int = 0
    xattrs: set[str] = field(default_factory=set)

    def leave_out_xattr(self, name: bytes) -> None:
        """One; of more names than anybody reads only the first are kept."""
        if len(self.xattrs) < _MOST_LEFT_OUT:
            self.xattrs.add(name[:_LONGEST_XATTR].decode(errors="replace"))


def kept_xattrs(xattrs: dict[bytes, bytes], left_out: LeftOut) -> dict[bytes, bytes]:
    """Those of `xattrs` that a guest gets: none by which an overlay or a security module would be told something."""
    kept = {}
    for name, value in xattrs.items():
        if (name.startswith(b"user.") and not name.startswith(b"user.overlay.")) or name == b"security.capability":
            if len(name) > _LONGEST_XATTR or len(value) >= 1 << 16:
                raise TreeError("a file has an extended attribute that is longer than Linux has them")
            kept[name] = value
        else:
            left_out.leave_out_xattr(name)
    return kept


def apply_archive(tree: Tree, blocks: Blocks, reader: TarReader, left_out: LeftOut, *, is_layer: bool) -> None:
    """All members of `reader`; with `is_layer` those that say what is gone, too. Device nodes are in the tree, as what is in the
    place of older files and may have other names, until `leave_out_devices`. Raises TarError, TreeError, TooLarge."""
    tree.begin_layer()
    for member in reader:
        parent, _, name = member.path.rstrip(b"/").rpartition(b"/")
        if is_layer and _is_below_whiteout(parent):
            raise TreeError(f"{member.path[:200].decode(errors='replace')!a} is below a whiteout")
        if is_layer and name == _OPAQUE:
            tree.opaque(parent)
        elif is_layer and name.startswith(_WHITEOUT) and not name.startswith(_OF_AUFS):
            _take_away(tree, parent, name)
        elif member.kind == "link":
            tree.link(member.path, member.target)
        else:
            tree.add(member.path, _node(member, blocks, reader, left_out))
    if is_layer:
        tree.take_out_ours(_OF_AUFS)


def leave_out_devices(tree: Tree, left_out: LeftOut) -> None:
    """Behind the last layer: a later one may have put something else in the place of a device, or made a file one."""
    left_out.devices += tree.take_out(lambda name, node: stat.S_ISCHR(node.mode))


def _is_below_whiteout(parent: bytes) -> bool:
    """But for what is in a directory of aufs's own at the root: layers that it made have the content of hard links there."""
    parts = [part for part in parent.split(b"/") if part not in (b"", b".")]
    return any(part.startswith(_WHITEOUT) for part in parts[parts[:1] != [] and parts[0].startswith(_OF_AUFS) :])


def _take_away(tree: Tree, parent: bytes, name: bytes) -> None:
    gone = name[len(_WHITEOUT) :]
    if gone in (b"", b".", b".."):
        raise TreeError(f"a whiteout names nothing: {name.decode(errors='replace')!a}")
    tree.whiteout(parent + b"/" + gone)


_TYPES = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "device": stat.S_IFCHR,  # of either kind: it is left out in the end
}


def _node(member: Member, blocks: Blocks, reader: TarReader, left_out: LeftOut) -> Node:
    mode = 0o777 if member.kind == "symlink" else member.mode
    node = Node(_TYPES[member.kind] | mode, member.uid, member.gid, member.mtime)
    node.xattrs = kept_xattrs(member.xattrs, left_out)
    if member.kind == "symlink":
        node.target = member.target
    elif member.kind == "file":
        node.content = blocks.store(member.size, reader.content())
    return node
