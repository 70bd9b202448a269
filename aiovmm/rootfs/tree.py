"""A root file system as a tree in memory, made entry by entry and layer by layer. Pure: what stands in an archive is a name in
this tree and never one on the host, so that no path, link or whiteout can reach anything there.

Links in the middle of a path are followed within the tree, as in a container: a layer may name `lib/x` where an older one made
`lib` a link to `usr/lib`. Source: OCI image specification 1.1, layer.md.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aiovmm.rootfs.limits import DEEPEST, Limits

__all__ = ["Content", "Node", "Tree", "TreeError"]

_LINKS = 40  # symbolic links on one path, as Linux has it
_LONGEST_NAME = 255
_LONGEST_TARGET = 4095
_LONGEST_PATH = 4096  # bytes, PATH_MAX
_STEPS = 64
"""Names that an entry's path goes through by links, on the average of as many entries as there may be: a single one may go
through 80,000, by 40 links that are as long as they can be."""


class TreeError(Exception):
    """An entry that cannot be in a tree; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where a file's bytes are: `count` whole blocks from `block` on, then `tail`, which is less than a block."""

    size: int
    block: int = 0
    count: int = 0
    tail: bytes = b""


@dataclass(eq=False, slots=True)
class Node:
    """A file, directory, link, FIFO or device: `mode` with its type bits, `mtime` in seconds since the epoch. It has so many
    `names`."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    content: Content = Content(0)
    target: bytes = b""
    children: dict[bytes, Node] = field(default_factory=dict)
    names: int = 1

    @property
    def is_directory(self) -> bool:
        """By its mode."""
        return stat.S_ISDIR(self.mode)


class Tree:
    """`freed` hears of the content of a file that has lost its last name."""

    def __init__(self, limits: Limits, freed: Callable[[Content], None]) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self._limits = limits
        self._freed = freed
        self._entries = 0
        self._steps = _STEPS * (limits.entries + 1000)
        # names, by their directories, that this layer has said something of
        self._ours: set[tuple[Node, bytes]] = set()
        self._cleared: set[Node] = set()  # directories in which nothing of older layers is left

    def begin_layer(self) -> None:
        """What is there now is an older layer's. It is names that are a layer's, and not files: one may give an old file another
        name and take away the first."""
        self._ours.clear()
        self._cleared.clear()

    def add(self, path: bytes, node: Node) -> None:
        """Put `node` at `path`, in the place of what was there. A directory in a directory's place keeps what is in it."""
        self._count(path)
        names = _names(path)
        if stat.S_ISLNK(node.mode) and (not 0 < len(node.target) <= _LONGEST_TARGET or b"\0" in node.target):
            raise TreeError(f"{_shown(path)} is a symbolic link to what cannot be a path")
        if not names:
            if not node.is_directory:
                raise TreeError("the root is not a directory")
            self._restate(self.root, node)
            return
        parent = self._made_parent(names)
        self._ours.add((parent, names[-1]))
        there = parent.children.get(names[-1])
        if there is not None and there.is_directory and node.is_directory:
            self._restate(there, node)
            return
        if there is not None:
            self._drop(there)
        parent.children[names[-1]] = node

    def link(self, path: bytes, target: bytes) -> None:
        """Another name for the file at `target`."""
        self._count(path)
        node = self.find(target)
        if node is None:
            raise TreeError(f"{_shown(path)} is a link to {_shown(target)}, which is not there")
        if node.is_directory:
            raise TreeError(f"{_shown(path)} is another name for a directory")
        names = _names(path)
        if not names:
            raise TreeError("the root is a link")
        parent = self._made_parent(names)
        self._ours.add((parent, names[-1]))
        there = parent.children.get(names[-1])
        if there is node:
            return
        node.names += 1
        if there is not None:
            self._drop(there)
        parent.children[names[-1]] = node

    def ensure_directory(self, path: bytes) -> None:
        """Make the directory at `path`, and those that it is in, as far as they are not there."""
        self._parent([*_names(path), b"x"], make=True)

    def find(self, path: bytes) -> Node | None:
        """What is at `path`; a link there is not followed."""
        names = _names(path)
        if not names:
            return self.root
        parent = self._parent(names, make=False)
        return None if parent is None else parent.children.get(names[-1])

    def whiteout(self, path: bytes) -> None:
        """What older layers have at `path` is gone; what this one has put there stays, whichever the archive names first."""
        self._count(path)
        names = _names(path)
        parent = self._parent(names, make=False) if names else None
        if parent is not None and names[-1] in parent.children:
            self._keep_ours(parent, names[-1])

    def opaque(self, path: bytes) -> None:
        """Nothing of older layers is left in the directory at `path`."""
        self._count(path)
        names = _names(path)
        directory = self._directory(names)
        if directory is not None:
            self._clear(directory)

    def take_out(self, wanted: Callable[[bytes, Node], bool]) -> int:
        """Take away all names for which that is so, with what is below them; how many there were. Other names of it stay."""
        found, pending = 0, [self.root]
        while pending:
            directory = pending.pop()
            for name, node in list(directory.children.items()):
                if wanted(name, node):
                    self._drop(directory.children.pop(name))
                    found += 1
                elif node.is_directory:
                    pending.append(node)
        return found

    def take_out_ours(self, prefix: bytes) -> None:
        """Take away the names of this layer that begin so, with what is below them."""
        ours = [(directory, name) for directory, name in self._ours if name.startswith(prefix)]
        found = [node for directory, name in ours if (node := directory.children.pop(name, None)) is not None]
        for node in found:  # none of them is below another any more
            self._drop(node)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All paths, without a leading slash, and what is there; parents come first."""
        pending = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            for name in sorted(node.children, reverse=True):
                pending.append((path + b"/" + name if path else name, node.children[name]))

    # -- how

    def _count(self, path: bytes) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise TreeError(f"there are more than {self._limits.entries} entries, at {_shown(path)}")

    def _directory(self, names: list[bytes]) -> Node | None:
        if not names:
            return self.root
        return self._parent([*names, b"x"], make=False)

    def _made_parent(self, names: list[bytes]) -> Node:
        parent = self._parent(names, make=True)
        assert parent is not None, "it was made"
        return parent

    def _parent(self, names: list[bytes], *, make: bool) -> Node | None:
        """The directory that the last of `names` is in. Links are followed, `..` in them stops at the root."""
        stack = [self.root]
        pending = list(reversed(names[:-1]))
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            child = stack[-1].children.get(name)
            if child is None:
                if not make:
                    return None
                child = Node(stat.S_IFDIR | 0o755)
                stack[-1].children[name] = child
                self._ours.add((stack[-1], name))
                self._count(name)
            if stat.S_ISLNK(child.mode):
                links += 1
                if links > _LINKS:
                    raise TreeError(f"{_shown(b'/'.join(names))} goes through more than {_LINKS} symbolic links")
                if child.target.startswith(b"/"):
                    stack = [self.root]
                pending += self._parts_of(child.target)
                continue
            if not child.is_directory:
                if not make:
                    return None
                raise TreeError(f"{_shown(b'/'.join(names))} goes through {_shown(name)}, which is not a directory")
            stack.append(child)
            if len(stack) > DEEPEST:
                raise TreeError(f"there are more than {DEEPEST} directories in each other, at {_shown(name)}")
        return stack[-1]

    def _parts_of(self, target: bytes) -> list[bytes]:
        """Of a link's target, the last first."""
        parts = target.split(b"/")
        self._steps -= len(parts)
        if self._steps < 0:
            raise TreeError("its links are more work than all that may be in it")
        return [part for part in reversed(parts) if part not in (b"", b".")]

    def _restate(self, there: Node, node: Node) -> None:
        there.mode, there.uid, there.gid, there.mtime = node.mode, node.uid, node.gid, node.mtime
        there.xattrs = node.xattrs

    def _clear(self, directory: Node) -> None:
        """Nothing of older layers is left in it. It is gone through once for each layer, however often that says so: what comes
        later is that one's own."""
        if directory not in self._cleared:
            self._cleared.add(directory)
            for name in list(directory.children):
                self._keep_ours(directory, name)

    def _keep_ours(self, directory: Node, name: bytes) -> bool:
        """Take away the name and all below it that is of older layers; whether it stays, being this one's, or above what is."""
        node = directory.children[name]
        stays = (directory, name) in self._ours
        if node.is_directory:
            self._clear(node)
            stays |= bool(node.children)
        if not stays:
            del directory.children[name]
            self._drop(node)
        return stays

    def _drop(self, node: Node) -> None:
        for child in node.children.values():
            self._drop(child)
        node.children.clear()  # whoever has it yet finds none of them to be dropped again
        node.names -= 1
        if node.names == 0 and node.content.size:
            self._freed(node.content)


def _names(path: bytes) -> list[bytes]:
    """The parts of a path, absolute or not. Raises TreeError for one that leaves the root, whatever it comes back to."""
    if len(path) > _LONGEST_PATH:
        raise TreeError(f"{_shown(path)} is a path longer than {_LONGEST_PATH} bytes")
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names or b"\0" in path:
        raise TreeError(f"{_shown(path)} leads out of the root")
    if any(len(name) > _LONGEST_NAME for name in names):
        raise TreeError(f"{_shown(path)} has a name longer than {_LONGEST_NAME} bytes")
    return names


def _shown(path: bytes) -> str:
    return ascii(path[:200].decode(errors="replace"))
