"""A reader of flattened device trees, written from the specification (Devicetree Specification 0.4, chapter 5), to check the
writer with: it shares nothing with it, and believes nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class Read:
    """A node as the blob has it."""

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Read] = field(default_factory=list)

    def at(self, path: str) -> Read:
        """The node at `path`, like /cpus/cpu@0."""
        node = self
        for name in filter(None, path.split("/")):
            [node] = [child for child in node.children if child.name == name]
        return node

    def below(self, prefix: str) -> list[Read]:
        return [child for child in self.children if child.name.split("@")[0] == prefix]

    def cells(self, name: str) -> list[int]:
        value = self.properties[name]
        assert len(value) % 4 == 0
        return list(struct.unpack(f">{len(value) // 4}I", value))

    def quads(self, name: str) -> list[int]:
        value = self.properties[name]
        assert len(value) % 8 == 0
        return list(struct.unpack(f">{len(value) // 8}Q", value))

    def strings(self, name: str) -> list[str]:
        value = self.properties[name]
        assert value.endswith(b"\0")
        return [part.decode() for part in value[:-1].split(b"\0")]


def read(blob: bytes) -> Read:
    """The root; AssertionError for anything that the specification does not allow."""
    magic, total, structure, strings, reserved, version, compatible, _boot, strings_size, size = struct.unpack_from(
        ">10I", blob
    )
    assert (magic, version, compatible) == (0xD00DFEED, 17, 16)
    assert total == len(blob)
    assert reserved % 8 == structure % 4 == 0
    assert 40 <= reserved < structure < structure + size <= strings <= strings + strings_size <= total
    while struct.unpack_from(">QQ", blob, reserved) != (0, 0):
        reserved += 16
    assert reserved + 16 <= structure
    walk = _Walk(blob[structure : structure + size], blob[strings : strings + strings_size])
    root = walk.node()
    assert walk.word() == 9
    assert walk.at == size
    return root


class _Walk:
    def __init__(self, structure: bytes, strings: bytes) -> None:
        self._structure, self._strings, self.at = structure, strings, 0

    def word(self) -> int:
        self.at += 4
        assert self.at <= len(self._structure)
        return int.from_bytes(self._structure[self.at - 4 : self.at], "big")

    def node(self) -> Read:
        assert self.word() == 1
        end = self._structure.index(b"\0", self.at)
        node = Read(self._structure[self.at : end].decode("ascii"))
        self._skip_to(end + 1)
        while (token := self.word()) == 3:
            size, name = self.word(), self.word()
            key = self._strings[name : self._strings.index(b"\0", name)].decode("ascii")
            assert key not in node.properties
            node.properties[key] = self._structure[self.at : self.at + size]
            self._skip_to(self.at + size)
        while token == 1:
            self.at -= 4
            node.children.append(self.node())
            token = self.word()
        assert token == 2, "properties come before children"
        return node

    def _skip_to(self, end: int) -> None:
        aligned = -(-end // 4) * 4
        assert not any(self._structure[end:aligned])
        assert aligned <= len(self._structure)
        self.at = aligned
