"""The architectures whose guests run here, a host's own, and in what their names differ.

What differs in more than names is in the rooms of `kvm`, `boot` and `machine`, which have `Architecture.name`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from aiovmm.errors import HostError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["AARCH64", "ALL", "X86_64", "Architecture", "host", "name_of_host"]


@dataclass(frozen=True)
class Architecture:
    """`name` is uname's, `title` is for people; `serial` is what Linux calls the serial port; `debian` ends the names of
    packages. `elf`: the machine (e_machine) of its programs, by ELF class. `emulator`: the program that emulates it, and the
    package that has it. `audit`: what the kernel calls it where system calls are judged (AUDIT_ARCH_*)."""

    name: str
    title: str
    serial: str
    debian: str
    elf: Mapping[int, int]
    emulator: str
    emulator_package: str
    audit: int


X86_64 = Architecture(
    name="x86_64",
    title="x86-64",
    serial="ttyS0",
    debian="amd64",
    elf={1: 3, 2: 62},
    emulator="qemu-system-x86_64",
    emulator_package="qemu-system-x86",
    audit=0xC000003E,
)
AARCH64 = Architecture(
    name="aarch64",
    title="arm64",
    serial="ttyAMA0",
    debian="arm64",
    elf={2: 183},
    emulator="qemu-system-aarch64",
    emulator_package="qemu-system-arm",
    audit=0xC00000B7,
)
ALL = (X86_64, AARCH64)


def name_of_host() -> str:
    """What uname says."""
    return os.uname().machine


def host() -> Architecture:
    """The one of this host, and of its guests. Raises HostError on a host of another."""
    name = name_of_host()
    for architecture in ALL:
        if architecture.name == name:
            return architecture
    titles = " or ".join(architecture.title for architecture in ALL)
    raise HostError(f"looking for guests that run on {name}", errno.ENOTSUP, f"use a host of {titles}")
