"""MAC addresses."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable

from aiovmm.errors import ConfigError

__all__ = ["derive_mac", "format_mac", "other_end", "parse_mac", "random_mac"]

_TEXT = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def parse_mac(text: str) -> bytes:
    """Six bytes of "2e:00:00:00:00:01". Raises ConfigError."""
    if not _TEXT.fullmatch(text.lower()):
        raise ConfigError("net.mac", f"{text!r} is not a MAC address", "like 2e:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", ""))


def format_mac(mac: bytes) -> str:
    """As text."""
    return mac.hex(":")


def random_mac(randbytes: Callable[[int], bytes] = os.urandom) -> bytes:
    """A locally administered unicast address (IEEE 802, 8.4)."""
    return _local(randbytes(6))


def derive_mac(name: str) -> bytes:
    """The same, and the same for the same name: a guest keeps its address from one run to the next."""
    return _local(hashlib.blake2b(os.fsencode(name), digest_size=6).digest())


def other_end(mac: bytes) -> bytes:
    """What the host's end of a guest's link is called: the same wherever the guest goes on, which knows its host by that, and
    higher than all of a bridge's other interfaces, so that a bridge does not take it for its own. libvirt's scheme."""
    return b"\xfe" + mac[1:]


def _local(mac: bytes) -> bytes:
    return bytes([mac[0] & 0xFC | 0x02]) + mac[1:]
