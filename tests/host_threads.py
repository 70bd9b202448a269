"""This process's threads as the system knows them: those of vCPUs are none of the interpreter's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["of_vcpus", "threads"]


def threads() -> dict[int, str]:
    """The names that the system's tools show, by their ids."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            found[int(task.name)] = (task / "comm").read_text().rstrip("\n")
    return found


def of_vcpus() -> dict[int, str]:
    """Those that run vCPUs."""
    return {thread: name for thread, name in threads().items() if "vcpu-" in name}
