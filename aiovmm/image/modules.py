"""Kernel modules in a directory: what is there, what each needs, in which order they load.

Everything is read from the modules' own `.modinfo` section (name, depends, softdep, alias, vermagic), so a package that was
only unpacked (no depmod run), a full /lib/modules/RELEASE and a flat directory of .ko files all serve alike.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aiovmm.boot.unpack import UnpackError, expand
from aiovmm.boot.window import FileWindow, OutsideFile
from aiovmm.errors import ImageError

__all__ = ["Module", "ModuleTree", "module_name"]

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_COMPRESSIONS = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
_LARGEST = 256 << 20  # bytes of one unpacked module
_DEEPEST = 100  # dependencies in a row; the kernel's own chains have about ten
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")


def module_name(text: str) -> str:
    """The name the kernel knows a module by: file names may have dashes, module names have underscores."""
    return text.replace("-", "_")


@dataclass(frozen=True)
class Module:
    """An unpacked module and what it says of itself."""

    name: str
    data: bytes

    @cached_property
    def info(self) -> dict[str, list[str]]:
        """The `key=value` strings of .modinfo, by key."""
        info: dict[str, list[str]] = {}
        for item in _section(self.data, b".modinfo").split(b"\0"):
            key, equals, value = item.decode(errors="replace").partition("=")
            if equals:
                info.setdefault(key, []).append(value)
        return info

    @property
    def depends(self) -> list[str]:
        """Names of the modules it needs symbols of."""
        return [module_name(n) for text in self.info.get("depends", []) for n in text.split(",") if n]

    @property
    def soft_depends(self) -> list[str]:
        """Names of modules that it asks to have loaded before it ("softdep: pre:"), if they exist."""
        words = [w for text in self.info.get("softdep", []) for w in text.split()]
        wanted, before = [], False
        for word in words:
            if word.endswith(":"):
                before = word == "pre:"
            elif before:
                wanted.append(module_name(word))
        return wanted

    @property
    def aliases(self) -> list[str]:
        """Patterns of the device ids (modalias) that it drives."""
        return self.info.get("alias", [])

    @property
    def machine(self) -> int:
        """The processor it was built for: e_machine of ELF."""
        return int.from_bytes(self.data[18:20], "little")

    @property
    def release(self) -> str:
        """The kernel release it was built for (`uname -r`)."""
        return next(iter(self.info.get("vermagic", [""]))).split(" ")[0]


class ModuleTree:
    """The modules below `directory`. Raises ImageError if it is not a directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ImageError(str(self.directory), "is not a directory of kernel modules")
        self._paths = {module_name(p.name.split(".ko")[0]): p for p in self._files()}
        self._loaded: dict[str, Module] = {}

    def __contains__(self, name: str) -> bool:
        return module_name(name) in self._paths

    @property
    def names(self) -> Collection[str]:
        """Of all modules."""
        return self._paths.keys()

    @cached_property
    def builtin(self) -> frozenset[str]:
        """Names of what is built into the kernel instead, as far as modules.builtin tells."""
        listing = self.directory / "modules.builtin"
        lines = listing.read_text(errors="replace").split() if listing.is_file() else []
        return frozenset(module_name(line.rpartition("/")[2].removesuffix(".ko")) for line in lines)

    def module(self, name: str) -> Module:
        """The module `name`. Raises ImageError if it is not here or cannot be unpacked."""
        name = module_name(name)
        if name not in self._paths:
            raise ImageError(str(self.directory), f"has no kernel module {name}")
        if name not in self._loaded:
            self._loaded[name] = Module(name, _unpacked(self._paths[name]))
        return self._loaded[name]

    def load_order(self, wanted: Iterable[str]) -> list[Module]:
        """`wanted` and all they need, each after its dependencies. Raises ImageError for a missing one or a cycle."""
        order: dict[str, Module] = {}
        for name in wanted:
            self._visit(module_name(name), order, ())
        return list(order.values())

    def _visit(self, name: str, order: dict[str, Module], above: tuple[str, ...]) -> None:
        if name in order or name in self.builtin:
            return
        if len(above) > _DEEPEST:
            raise ImageError(str(self.directory), f"more than {_DEEPEST} kernel modules need each other in a row")
        if name in above:
            raise ImageError(str(self.directory), f"kernel modules need each other: {' -> '.join((*above, name))}")
        module = self.module(name)
        for needed in [*module.depends, *(n for n in module.soft_depends if n in self)]:
            self._visit(needed, order, (*above, name))
        order[name] = module

    def _files(self) -> Iterator[Path]:
        for root, _, files in sorted(os.walk(self.directory)):
            yield from (Path(root, f) for f in sorted(files) if f.endswith(_SUFFIXES))


def _unpacked(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if path.suffix in _COMPRESSIONS:
            data = expand(_COMPRESSIONS[path.suffix], data, _LARGEST)
    except (OSError, UnpackError) as exc:
        raise ImageError(str(path), f"cannot be unpacked: {exc}") from exc
    if len(data) > _LARGEST or data[:5] != b"\x7fELF\x02":
        raise ImageError(str(path), "is not a 64-bit kernel module")
    return data


def _section(data: bytes, wanted: bytes) -> bytes:
    """The content of an ELF64 section by name; empty if there is none or the file is damaged."""
    file = FileWindow.over(data)
    try:
        fields = _EHDR.unpack(file.part(0, _EHDR.size, "the ELF header"))
        offset, entry_size, count, names_index = fields[6], fields[11], fields[12], fields[13]
        if entry_size != _SHDR.size or names_index >= count:
            return b""
        headers = list(_SHDR.iter_unpack(file.part(offset, count * entry_size, "the table of sections")))
        names = file.part(headers[names_index][4], headers[names_index][5], "the names of sections")
        for header in headers:
            if names[header[0] :].partition(b"\0")[0] == wanted:
                return file.part(header[4], header[5], "a section")
    except OutsideFile:
        return b""
    return b""
