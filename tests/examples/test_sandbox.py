"""examples/sandbox.py's table, which shows what guests have printed."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from examples.sandbox import Board, Job


def test_what_a_guest_prints_is_text() -> None:
    job = Job("[/bold] x")
    job.ended("status 0", b"first\n\x1b]52;c;eA==\x07[/red][bold]", ok=True)
    out = StringIO()
    Console(file=out, width=200).print(Board([job]))
    assert "[/red][bold]" in out.getvalue()
    assert "[/bold] x" in out.getvalue()
    assert "\x1b" not in out.getvalue() + job.last_line
