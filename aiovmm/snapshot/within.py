"""What a snapshot that others have made may name on this host: what is below one directory, and nothing else.

A snapshot's configuration is opened like any other, with the rights of whoever restores it. So each part of it that the restorer
has not given anew is looked at first: paths where they lead (links are followed), and what is no path at all: interfaces,
descriptors, devices, helper programs, files that an image names. A field of a type that is not known here is refused if it is a
path outside (tests/snapshot/test_within.py has a list of all others).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiovmm.config import (
    DeviceConfig,
    DiskConfig,
    NetConfig,
    PayloadConfig,
    PlatformConfig,
    RebootPolicy,
    VMConfig,
    VsockConfig,
)
from aiovmm.errors import ConfigError, SnapshotError
from aiovmm.runtime.dataclass import field_types

__all__ = ["Within"]

_RANDOM = {Path("/dev/urandom"), Path("/dev/random")}  # which tell nothing, and hear nothing
_PORT = re.compile("_[0-9]+")  # behind the name of a vsock's socket: where the guest connects to
_MOST = 8  # places that are named in an error

Finding = tuple[str, str]
"""(field, what of it is refused)"""


class Within:
    """A bound: the directory `within`, to which nobody may write meanwhile who is not trusted. In a thread, as it looks at files.
    Raises ConfigError for what is no directory."""

    def __init__(self, within: Path) -> None:
        self._root = os.path.realpath(within)
        if not os.path.isdir(self._root):
            raise ConfigError("within", f"{within} is no directory", "what the snapshot may open is below it")

    def allows(self, path: Path) -> bool:
        """Whether it leads there, or would if it were there."""
        return self._refused(path) is None

    def check(self, snapshot: Path, saved: VMConfig, config: VMConfig) -> None:
        """`config` is what a guest is to be restored with from `snapshot`, whose own is `saved`: what is another object there was
        given by whoever restores. Raises SnapshotError, with the fields that lead outside."""
        found = [f"{option} {what}" for option, what in self._in(config, saved)]
        if found:
            more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
            raise SnapshotError(
                f"{snapshot}: it would have the host's: {'; '.join(found[:_MOST])}{more}: only what is below {self._root} may be "
                "opened for it; give what it needs otherwise yourself"
            )

    def _in(self, config: VMConfig, saved: VMConfig) -> Iterator[Finding]:
        boots_again = RebootPolicy.RESTART in (config.on_reboot, config.on_panic)
        for name in field_types(config):
            value, theirs = getattr(config, name), getattr(saved, name)
            if isinstance(value, PayloadConfig) and not boots_again:
                continue  # that is opened for a reset alone
            if isinstance(value, tuple):
                for number, item in enumerate(value):
                    if any(item is one for one in theirs):
                        yield from self._of(f"{name}[{number}]", item)
            elif value is theirs:
                yield from self._of(name, value)

    def _of(self, option: str, config: Any) -> Iterator[Finding]:
        if not hasattr(config, "__shape__"):
            return
        yield from ((f"{option}{field}", what) for field, what in _not_by_path(config))
        for name in field_types(config):
            value = getattr(config, name)
            if isinstance(value, Path):
                what = self._socket_refused(value) if isinstance(config, VsockConfig) else self._refused(value)
                if what is not None:
                    yield f"{option}.{name}", what
            for inner in value if isinstance(value, tuple) else (value,):
                yield from self._of(f"{option}.{name}", inner)

    def _refused(self, path: Path) -> str | None:
        """Why it is."""
        if path in _RANDOM:
            return None
        real = os.path.realpath(path)
        if real != self._root and not real.startswith(self._root.rstrip("/") + "/"):
            return f"is {path}" if os.path.abspath(path) == real else f"is {path}, which is {real}"
        try:
            mode = os.stat(real).st_mode
        except OSError:  # it is made there
            return None
        ordinary = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISSOCK(mode)
        return None if ordinary else f"is {path}, a device or a pipe"

    def _socket_refused(self, path: Path) -> str | None:
        """A guest says which of the sockets beside it are connected to: none may be a link to elsewhere."""
        if (what := self._refused(path)) is not None:
            return what
        real = Path(os.path.realpath(path))
        try:
            beside = [entry.name for entry in os.scandir(real.parent) if entry.name.startswith(real.name)]
        except OSError:
            return None
        for name in sorted(beside):
            if _PORT.fullmatch(name.removeprefix(real.name)) and (what := self._refused(real.parent / name)):
                return what
        return None


def _not_by_path(config: Any) -> Iterator[Finding]:
    if isinstance(config, NetConfig) and not config.vhost_user:
        what = "passt's network" if config.passt else f"descriptors {config.fd}" if config.fd else "a TAP"
        yield "", f"is {what}"
    elif isinstance(config, DeviceConfig):
        yield "", "is a device of the host"
    elif isinstance(config, PlatformConfig) and config.iommufd_fd is not None:
        yield ".iommufd_fd", f"is descriptor {config.iommufd_fd}"
    elif isinstance(config, DiskConfig) and config.backing_files:
        yield ".backing_files", "is on: its image says which files are opened"
