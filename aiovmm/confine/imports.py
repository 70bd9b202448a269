"""Go on importing as a user who cannot get to where the program is, as a virtual environment in root's home.

A directory that is open stays one to begin at, whatever is above it: /proc/self/fd/N leads into it without a look at the path
to it. So those of sys.path are opened before, and afterwards those are named so that the user cannot get to. What is in them
has to be readable all the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiovmm.errors import ConfigError

__all__ = ["hold", "reach"]

_ENTER = os.R_OK | os.X_OK


def hold() -> dict[str, int]:
    """Descriptors of the directories that modules are imported from."""
    held: dict[str, int] = {}
    for path in (*sys.path, str(Path(__file__).parent.parent.parent)):  # the last one of an installation by link
        if path.startswith("/") and path not in held and os.path.isdir(path):
            held[path] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return held


def reach(held: Mapping[str, int], name: str, option: str) -> None:
    """Name those anew that this process cannot get to any more, and close the others. Raises ConfigError, which names `option`,
    where user `name` may not read one itself that something was imported from."""
    moved: dict[str, str] = {}
    for path, fd in held.items():
        if os.access(path, _ENTER):
            os.close(fd)
            continue
        moved[path] = f"/proc/self/fd/{fd}"
        if not os.access(moved[path], _ENTER) and _is_used(path, held):
            hint = "install aiovmm where all can read it, like /opt"
            raise ConfigError(option, f"user {name} cannot read {path}, from where this program goes on", hint)
    if moved:
        _rename(sys.path, moved)
        for module in list(sys.modules.values()):
            if isinstance(places := getattr(module, "__path__", None), list):
                _rename(places, moved)


def _is_used(path: str, held: Iterable[str]) -> bool:
    """Whether anything came from it: unlike from the directory that `python -m` is started in, which may be above all of them."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return any(_innermost(file, held) == path for file in files if isinstance(file, str))


def _innermost(place: str, paths: Iterable[str]) -> str | None:
    """The longest of those that it is in."""
    return max((path for path in paths if _is_in(place, path)), key=len, default=None)


def _is_in(place: str, path: str) -> bool:
    return place == path or place.startswith(path.rstrip("/") + "/")


def _rename(places: list[str], moved: Mapping[str, str]) -> None:
    places[:] = [_renamed(place, moved) for place in places]


def _renamed(place: str, moved: Mapping[str, str]) -> str:
    path = _innermost(place, moved)
    return place if path is None else moved[path] + place.removeprefix(path.rstrip("/"))
