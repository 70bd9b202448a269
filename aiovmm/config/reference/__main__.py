"""Prints the table."""

from __future__ import annotations

from aiovmm.config.reference import as_markdown

print(as_markdown(), end="")
