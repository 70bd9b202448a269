"""The command with all that it can do, made with click."""

from __future__ import annotations

import importlib

import click

from aiovmm.cli.usage import OneLineGroup, version_option

__all__ = ["cli"]

_COMMANDS = {
    "run": ("aiovmm.cli.run", "Boot a guest and talk to it."),
    "ps": ("aiovmm.cli.ps", "List the guests that run."),
    "logs": ("aiovmm.cli.guest_logs", "Show what a guest's console has printed."),
    "attach": ("aiovmm.cli.attach", "Attach this terminal to a console's unix socket."),
    "exec": ("aiovmm.cli.exec", "Run a command in a running guest."),
    "cp": ("aiovmm.cli.cp", "Copy files into a running guest, or out of it."),
    "snapshot": ("aiovmm.cli.snapshot", "Write a running guest to a directory."),
    "add": ("aiovmm.cli.hotplug:add", "Plug a device into a running guest."),
    "remove": ("aiovmm.cli.hotplug:remove", "Take a device out of a running guest."),
    "resize": ("aiovmm.cli.hotplug:resize", "Give a running guest more or fewer processors, or memory."),
    "fork": ("aiovmm.cli.fork", "Run several guests that go on from one snapshot."),
    "doctor": ("aiovmm.cli.doctor", "Say what this machine can do, and what to do about what it cannot."),
    "image": ("aiovmm.cli.image", "Make or find what a guest boots from."),
    "disk": ("aiovmm.cli.disk", "Make, look at, copy and merge disk images and overlays."),
    "devices": ("aiovmm.cli.devices", "Say which devices a guest can have, and what they offer."),
}


class _LazyGroup(OneLineGroup):
    """Imports a subcommand's module when it is called; its one-line help stands in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name or "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def cli() -> None:
    """A KVM virtual machine monitor that lives inside an asyncio program."""
