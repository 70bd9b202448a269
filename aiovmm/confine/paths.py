"""Which paths a monitor needs, for landlock(7): its program, the host's devices, and what its guest is configured with. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aiovmm.config import ConsoleConfig, ConsoleMode, DebugConsoleConfig, VMConfig
from aiovmm.config.landlock import LandlockRuleConfig
from aiovmm.runtime.dataclass import dataclass, field_types

__all__ = ["NEWER", "OF_FILES", "Grant", "Right", "files_of", "of_config", "of_output", "of_program", "of_rule"]


class Right(enum.IntFlag):
    """LANDLOCK_ACCESS_FS_*: what can be done beneath a path."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


NEWER = {Right.REFER: 2, Right.TRUNCATE: 3, Right.IOCTL_DEV: 5}
"""The version of Landlock that knew it first, where that was not the first one."""

OF_FILES = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE | Right.IOCTL_DEV
"""What can be said of a path that is no directory."""

READ = Right.READ_FILE | Right.READ_DIR
RUN = READ | Right.EXECUTE
DEVICE = READ | Right.WRITE_FILE | Right.IOCTL_DEV
WRITE = READ | Right.WRITE_FILE | Right.TRUNCATE | Right.IOCTL_DEV
KEEP = WRITE | Right.REMOVE_FILE | Right.REMOVE_DIR | Right.MAKE_DIR | Right.MAKE_REG | Right.MAKE_SOCK | Right.REFER

_SYSTEM = "/usr /lib /lib64 /proc /sys /etc/ld.so.cache /etc/localtime /etc/passwd /etc/nsswitch.conf /etc/terminfo"
_DEVICES = "kvm net/tun vfio iommu tty ptmx pts null zero full random urandom vhost-vsock hugepages"
_READ_ONLY = {"kernel", "initramfs", "src"}  # names of fields
_MADE_THERE = {"socket", "overlay"}  # in the directory that they name a file of; sockets of guests' ports beside it


@dataclass(frozen=True)
class Grant:
    """`rights` beneath `path`. Where it is not `needed` it may be missing."""

    path: Path
    rights: Right
    needed: bool = False


def of_program(imported_from: Iterable[str | Path], cache: Path | None) -> list[Grant]:
    """The interpreter and its modules, what the system has for all, devices, and the `cache` of kernels, which is not
    this guest's alone."""
    grants = [Grant(Path(path), RUN) for path in _SYSTEM.split()]
    grants += [Grant(Path("/dev") / name, DEVICE) for name in _DEVICES.split()]
    grants += [Grant(Path(path), RUN) for path in imported_from]
    if cache is not None:
        grants.append(Grant(cache, READ))
    return grants


def of_config(config: VMConfig) -> Iterator[Grant]:
    """Files, sockets and directories that the configuration names."""
    yield from _of(config)


def files_of(config: VMConfig) -> list[Path]:
    """Those that are made as its guest's output, and stay: once they are there nothing else of their directories is needed."""
    consoles = (config.serial, config.console, config.debug_console)
    return [each.path for each in consoles if each.mode is ConsoleMode.FILE and each.path is not None]


def of_output(path: Path) -> Grant:
    """What is made at `path`, and removed: that is the directory's to allow."""
    return Grant(path.absolute().parent, KEEP)


def of_rule(rule: LandlockRuleConfig) -> Grant:
    """What somebody asks for."""
    return Grant(
        rule.path, (READ if "r" in rule.access else Right(0)) | (KEEP & ~READ if "w" in rule.access else 0), needed=True
    )


def _of(config: Any) -> Iterator[Grant]:
    if isinstance(config, ConsoleConfig | DebugConsoleConfig):
        if config.path is not None and config.mode is ConsoleMode.FILE:
            yield Grant(config.path, WRITE)  # it is there by then: see `files_of`
        elif config.path is not None and config.mode is ConsoleMode.SOCKET:
            yield of_output(config.path)
        return
    readonly = getattr(config, "readonly", False) or getattr(config, "discard_writes", False)
    for name in field_types(config):
        value = getattr(config, name)
        if isinstance(value, Path):
            yield _grant(name, value, readonly)
        for inner in value if isinstance(value, tuple) else (value,):
            if hasattr(inner, "__shape__"):
                yield from _of(inner)


def _grant(name: str, path: Path, readonly: bool) -> Grant:
    if name in _MADE_THERE:
        return of_output(path)
    return Grant(path, READ if readonly or name in _READ_ONLY else WRITE)
