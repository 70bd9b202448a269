"""What several configuration classes check. A check is as narrow as what uses the value: nothing that passes here may fail there
for its form."""

from __future__ import annotations

import os
import re

from aiovmm.errors import ConfigError

__all__ = ["check_descriptor", "check_id", "check_path", "check_queues", "check_socket", "encoded"]

MAX_QUEUE_SIZE = 32768  # VIRTIO 1.2, 2.7: the largest split ring
MAX_SOCKET_PATH = 107  # struct sockaddr_un, less the byte that ends it
# printable ASCII without what separates, encloses or quotes in option text; a space has something on either side
_ID = re.compile(r"(?! )[ !#-+\-.-Z\\^-~]{1,64}(?<! )")


def encoded(option: str, text: str, most: int) -> bytes:
    """The bytes of `text`, which need not be UTF-8: 1 to `most` of them, none of them NUL."""
    try:
        data = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(option, f"{text!r} has no bytes that could be sent") from None
    if not 0 < len(data) <= most or b"\0" in data:
        reason = "contains a NUL" if b"\0" in data else f"is not 1..{most} bytes long"
        raise ConfigError(option, f"{text!r} {reason}")
    return data


def check_path(option: str, path: os.PathLike[str] | str) -> None:
    """A path that the system calls can be given; whether it is there shows when it is opened."""
    encoded(option, os.fspath(path), 4095)


def check_socket(option: str, path: os.PathLike[str] | str, room: int = 0) -> None:
    """A path for a unix socket, with `room` for more after it."""
    check_path(option, path)
    most = MAX_SOCKET_PATH - room
    if len(os.fsencode(path)) > most:
        after = " with a port after it" if room else ""
        reason = f"is too long for a unix socket{after}: {most} bytes at most"
        raise ConfigError(option, reason, "use a relative path, or one in /run or /tmp")


def check_descriptor(option: str, fd: int) -> None:
    """A number that a descriptor which somebody hands in can have; whether it is open shows when it is used."""
    if not 3 <= fd < 1 << 31:
        reason = "is standard input, output or error" if 0 <= fd < 3 else "is not a descriptor"
        raise ConfigError(option, f"{fd} {reason}")


def check_id(option: str, name: str) -> None:
    """A name for a device."""
    if not _ID.fullmatch(name):
        hint = "up to 64 printable ASCII characters, without commas, brackets and quotes, or a space at either end"
        raise ConfigError(option, f"{name!r} is not a name", hint)


def check_queues(option: str, num_queues: int, queue_size: int, *, least: int = 1, most: int = 256) -> None:
    """Numbers of queues, and of descriptors in each."""
    if not least <= num_queues <= most:
        raise ConfigError(f"{option}.num_queues", f"{num_queues} is not in {least}..{most}")
    if not 2 <= queue_size <= MAX_QUEUE_SIZE or queue_size & (queue_size - 1):
        raise ConfigError(f"{option}.queue_size", f"{queue_size} is not a power of two in 2..{MAX_QUEUE_SIZE}")
