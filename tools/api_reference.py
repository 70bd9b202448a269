"""Prints docs/api.md: every public name, as its docstring and signature have it. `python -m tools.api_reference > docs/api.md`"""

from __future__ import annotations

import enum
import inspect
from typing import Any

import aiovmm

__all__ = ["reference"]


def reference() -> str:
    """The document."""
    parts = [
        "# Public names\n\nMade by `python -m tools.api_reference`; a test keeps it true. `from aiovmm import NAME`.\n"
    ]
    parts += [_entry(name, getattr(aiovmm, name)) for name in sorted(aiovmm.__all__)]
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    lines = [f"## {name}\n", f"{_first(value)}\n"]
    if not isinstance(value, type):
        return "\n".join(lines)
    if issubclass(value, enum.Enum):
        lines.append(", ".join(f"`{member.name}`" for member in value) + "\n")
    elif not issubclass(value, BaseException):
        lines += [row for member in sorted(dir(value)) if (row := _member(value, member))]
        lines.append("")
    return "\n".join(lines)


def _member(owner: type, name: str) -> str:
    value = inspect.getattr_static(owner, name)
    if name.startswith("_") or not owner.__module__.startswith("aiovmm"):
        return ""
    if isinstance(value, property):
        return f"- `{name}`: {_first(value.fget)}"
    if isinstance(value, classmethod):
        return f"- `{owner.__name__}.{name}(...)`: {_first(value)}"
    if inspect.isfunction(value):
        marker = "await " if inspect.iscoroutinefunction(value) else ""
        return f"- `{marker}{name}(...)`: {_first(value)}"
    return ""


def _first(value: object) -> str:
    """The first sentence or line of a docstring."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    end = text.find(". ")
    return (text if end < 0 else text[: end + 1]).replace("|", "\\|") or "(no words)"


if __name__ == "__main__":
    print(reference(), end="")
