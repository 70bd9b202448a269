"""`aiovmm doctor`: what this machine can do, and what to do about what it cannot."""

from __future__ import annotations

import json
import os
import sys

import click

from aiovmm.cli.usage import OneLineCommand

__all__ = ["command"]

_COLOURS = {"ok": "32", "limited": "33", "missing": "31"}


@click.command("doctor", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of findings.")
def command(as_json: bool) -> None:
    """Say what this machine can do for guests. Exit code 1 if it cannot run any."""
    from aiovmm.doctor import Verdict, examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([f.as_dict() for f in findings], indent=2))
    else:
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        width = max(len(f.question) for f in findings)
        for finding in findings:
            word = f"{finding.verdict.value:8}"
            if coloured:
                word = f"\x1b[{_COLOURS[finding.verdict.value]}m{word}\x1b[0m"
            click.echo(f"{word} {finding.question:{width}}  {finding.found}")
            if finding.remedy:
                click.echo(f"{'':8} {'':{width}}  -> {finding.remedy}")
    if any(f.verdict is Verdict.MISSING for f in findings):
        sys.exit(1)
