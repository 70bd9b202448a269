"""The project's code as the nested host has it: what differs, and the archive that brings it up to date."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import shutil
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

from tools import cross

from .arch import X86_64, Arch
from .errors import BuildFailed
from .requirements import distribution_files
from .settings import PROJECT_IN_HOST, PYTHON_IN_HOST

_SKIPPED_DIRECTORIES = {"__pycache__", "build", "dist", "node_modules", "venv"}
_SKIPPED_SUFFIXES = {".pyc", ".o", ".img", ".qcow2"}
_LARGEST_FILE = 32 << 20
_EXTENSION = "aiovmm/native/_native.abi3.so"
STATE = f"{PROJECT_IN_HOST}/.kvmhost"

# Run in the host with update_archive() as its input. Without a digest, an interrupted one starts over next time.
APPLY_UPDATE = f"rm -f {STATE}/digest && tar -xf - -C / && xargs -0r rm -f <{STATE}/gone"


@dataclass(frozen=True)
class Source:
    """One file for the host: its contents, and its permissions and time in the tree it comes from."""

    content: bytes
    mode: int = 0o644
    mtime: int = 0  # kept, so that the host's compiled files stay valid

    @property
    def digest(self) -> str:
        return hashlib.blake2b(self.content, digest_size=12, key=b"%o" % self.mode).hexdigest()


Tree = dict[str, Source]  # by absolute path in the host


def project_tree(root: pathlib.Path, arch: Arch = X86_64) -> Tree:
    """The tree's files, built extension included, with the commands and metadata an installation would have.

    For another architecture the extension is cross compiled now, if it is not. BuildFailed.
    """
    tree = {}
    for path in _files(root):
        info = path.stat()
        name = f"{PROJECT_IN_HOST}/{path.relative_to(root).as_posix()}"
        tree[name] = Source(path.read_bytes(), info.st_mode & 0o777, int(info.st_mtime))
    if arch.is_foreign:
        tree[f"{PROJECT_IN_HOST}/{_EXTENSION}"] = _cross_compiled(arch)
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    for name, text in distribution_files(pyproject).items():
        mode = 0o755 if name.startswith("bin/") else 0o644
        tree[f"{PYTHON_IN_HOST}/{name}"] = Source(text.encode(), mode)
    return tree


def bare_metal_guests(root: pathlib.Path) -> Tree:
    """The guests that tests assemble, as they are here: the host has no assembler. None where this machine has none either."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        return {}
    from tests.guests import CACHE, build_all

    build_all()
    built = (path for path in CACHE.iterdir() if path.suffix in (".bin", ".elf"))
    return {f"{PROJECT_IN_HOST}/{path.relative_to(root)}": Source(path.read_bytes()) for path in built}


def _cross_compiled(arch: Arch) -> Source:
    try:
        path = cross.extension(arch.name)
    except cross.CrossBuildFailed as error:
        raise BuildFailed(str(error)) from error
    return Source(path.read_bytes(), 0o755, int(path.stat().st_mtime))


def _files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED_DIRECTORIES and _wanted(name))
        for name in sorted(files):
            path = pathlib.Path(directory, name)
            if _wanted(name) and _sendable(path):
                yield path


def _sendable(path: pathlib.Path) -> bool:
    return path.suffix not in _SKIPPED_SUFFIXES and path.is_file() and path.stat().st_size <= _LARGEST_FILE


def _wanted(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".egg-info")


def manifest(tree: Tree) -> dict[str, str]:
    return {path: source.digest for path, source in tree.items()}


def parse_manifest(text: bytes) -> dict[str, str]:
    """A manifest as the host keeps it; empty, so that all is sent again, if it is damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def digest(contents: dict[str, str]) -> str:
    """One name for the state of a whole tree."""
    return hashlib.blake2b(json.dumps(contents, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Update:
    """What turns the host's copy into the tree's."""

    changed: list[str]
    gone: list[str]

    @classmethod
    def between(cls, old: dict[str, str], new: dict[str, str]) -> Update:
        return cls(sorted(path for path in new if old.get(path) != new[path]), sorted(set(old) - set(new)))


def update_archive(tree: Tree, update: Update) -> bytes:
    """A tar archive for `/` of the host: the changed files, the host's new manifest and digest, and what to delete.

    The digest comes last: an interrupted update leaves the old one, which matches nothing.
    """
    contents = manifest(tree)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in update.changed:
            _add(archive, path, tree[path])
        _add(archive, f"{STATE}/gone", Source("".join(f"{path}\0" for path in update.gone).encode()))
        _add(archive, f"{STATE}/manifest.json", Source(json.dumps(contents).encode()))
        _add(archive, f"{STATE}/digest", Source(digest(contents).encode()))
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, path: str, source: Source) -> None:
    member = tarfile.TarInfo(path.lstrip("/"))
    member.size = len(source.content)
    member.mode = source.mode
    member.mtime = source.mtime
    archive.addfile(member, io.BytesIO(source.content))
