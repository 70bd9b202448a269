"""The targets in Python: modules with `SEEDS`, inputs to begin with, and `run`, which raises if something is wrong."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

__all__ = ["PYTHON", "Target", "load"]

PYTHON = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


class Target(Protocol):
    """What a module here is."""

    SEEDS: list[bytes]

    def run(self, data: bytes) -> None:
        """One execution."""


def load(name: str) -> Target:
    """The module."""
    return import_module(f"tests.fuzz.targets.{name}")
