"""The JSON bodies of the command channel's frames. Used on both sides: standard library alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hello:
    """Opens a session. The host answers with the same nonce, which tells the answer from leftovers of earlier sessions."""

    nonce: str
    boot_id: str = ""  # from the host: changes with each boot
    project: str = ""  # from the host: digest of the project code it holds
    uptime: float = 0.0  # from the host: seconds


@dataclass(frozen=True)
class Request:
    """Run `argv` in `cwd` with `env` added to the host's own environment."""

    argv: list[str]
    cwd: str = "/root"
    env: dict[str, str] = field(default_factory=dict)
    stdin: bool = False  # STDIN frames follow; otherwise standard input is /dev/null
    terminal: list[int] | None = None  # [rows, columns] of a terminal to run it on
    timeout: float | None = None  # seconds, then it is terminated
    leave: bool = False  # let processes that outlive the command go on


@dataclass(frozen=True)
class Result:
    """How a command ended: exit status, or minus the signal that ended it."""

    status: int
    seconds: float
    timed_out: bool = False
    leftovers: int = 0  # processes that outlived it and were killed


Message = Hello | Request | Result


def pack(message: Message) -> bytes:
    return json.dumps(asdict(message)).encode()


def unpack(kind: type[Any], body: bytes) -> Any:
    """The message of type `kind` in `body`; ValueError if it is not one."""
    try:
        return kind(**json.loads(body))
    except (TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
