"""What the nested host gives back: how a command ended, and how the host stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import CommandFailed


@dataclass
class Completed:
    """A command that ran in the nested host: `status` is its exit status, or minus the signal that ended it."""

    argv: list[str]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float  # in the host, without the channel
    timed_out: bool = False
    leftovers: int = 0  # processes it left behind, which were killed

    def check(self) -> Completed:
        """Itself if it succeeded, else CommandFailed with what it said."""
        if self.status == 0 and not self.timed_out:
            return self
        how = "timed out" if self.timed_out else f"ended with status {self.status}"
        said = b"\n".join((self.stdout[-4000:], self.stderr[-4000:])).decode(errors="replace")
        raise CommandFailed(f"{' '.join(self.argv)} {how} after {self.seconds:.1f} s:\n{said}")


@dataclass
class Status:
    running: bool
    profile: str
    directory: str
    used_by: str = ""
    pid: int = 0
    uptime: float = 0.0
    started_with: dict[str, object] = field(default_factory=dict)
