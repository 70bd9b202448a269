"""A network namespace for a test, with what it takes to look at a TAP from the host's side."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def lacking() -> str:
    """Why there can be no TAP in a namespace here; empty if there can."""
    if os.geteuid() != 0:
        return "TAP interfaces in a network namespace need root"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun (modprobe tun)"
    return ""


@contextmanager
def namespace() -> Iterator[None]:
    """The calling thread, and what it starts, in a namespace of its own. Skips the test where that cannot be."""
    if reason := lacking():
        pytest.skip(reason)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET) < 0:
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            ipv6(on=False)  # no chatter of the kernel's own
            yield
        finally:
            if _libc.setns(home, _CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


def ipv6(*, on: bool) -> None:
    """Whether interfaces that come into the namespace may have IPv6 addresses."""
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0" if on else "1")


def ip(command: str) -> str:
    """Run `ip` with these arguments in the namespace."""
    return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout


def links() -> list[str]:
    """Names of the interfaces in the namespace, without the loopback."""
    return [line.split(": ")[1] for line in ip("-o link").splitlines() if ": lo:" not in line]


@contextmanager
def unprivileged() -> Iterator[None]:
    """The calling thread without its effective capabilities."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    had = (ctypes.c_uint32 * 6)()
    assert _libc.capget(header, had) == 0
    dropped = (ctypes.c_uint32 * 6)(*had)
    dropped[0] = dropped[3] = 0
    assert _libc.capset(header, dropped) == 0
    try:
        yield
    finally:
        assert _libc.capset(header, had) == 0
