"""`aiovmm devices`: the device model of this version."""

from __future__ import annotations

import json

import click

from aiovmm.cli.usage import OneLineCommand

__all__ = ["command"]


@click.command("devices", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "form", flag_value="json", help="Print a JSON list of rows.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the tables of docs/devices.md.")
@click.option("--all", "every", is_flag=True, help="Say it of guests of all architectures, not of this host's alone.")
def command(form: str | None, every: bool) -> None:
    """Say which devices a guest can have, how they are switched, and what they offer."""
    from aiovmm.device_model import all_rows, as_markdown, as_text, device_rows

    rows = all_rows() if every or form == "markdown" else device_rows()
    if form == "json":
        click.echo(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        click.echo(as_markdown(rows) if form == "markdown" else as_text(rows), nl=False)
