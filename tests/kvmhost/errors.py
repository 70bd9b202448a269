"""What can go wrong with the nested host; each message ends with what to do."""

from __future__ import annotations


class KvmHostError(Exception):
    """Base: the nested host cannot do what was asked."""


class MissingTool(KvmHostError):
    """The machine lacks programs; the message has the command that installs them."""

    def __init__(self, tools: dict[str, str]) -> None:
        packages = " ".join(sorted(set(tools.values())))
        super().__init__(
            f"not installed: {', '.join(sorted(tools))}; run: apt-get install --no-install-recommends {packages}"
        )


class BuildFailed(KvmHostError):
    """A step of building the image failed."""


class HostLost(KvmHostError):
    """The nested host ended or stopped answering while it was used."""


class CommandRefused(KvmHostError):
    """The nested host could not start the command (not found, no such directory)."""


class CommandFailed(KvmHostError):
    """A command that had to succeed did not."""
