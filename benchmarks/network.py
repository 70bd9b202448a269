"""A network namespace of a benchmark's own."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ip", "own_network", "serving"]

_CLONE_NEWNET = 0x40000000


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and all that it starts, in a namespace that ends with them. Raises OSError; it needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "a network namespace of its own, which needs root")
        try:
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")  # no chatter of the kernel's own
            ip("link set lo up")
            yield
        finally:
            if libc.setns(home, _CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


def ip(command: str) -> str:
    """Run `ip` with these arguments."""
    return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout


@contextmanager
def serving(server: Path, *addresses: str) -> Iterator[None]:
    """The traffic program serves at these addresses meanwhile."""
    servers = [subprocess.Popen([server, "serve", address]) for address in addresses]
    try:
        yield
    finally:
        for one in servers:
            one.kill()
            one.wait()
