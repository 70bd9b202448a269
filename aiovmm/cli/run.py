"""`aiovmm run`: boot a guest, give it the terminal, end with an exit code that says how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aiovmm.cli.arguments import spread_lists, without_absent
from aiovmm.cli.run_options import OPTIONS, RunOption
from aiovmm.cli.start import start
from aiovmm.cli.usage import NAMED, OneLineCommand, once, version_option
from aiovmm.config.options import KEYS
from aiovmm.errors import UsageError

__all__ = ["OF_ROOTFS", "command"]

OF_ROOTFS = ("rootfs", "scratch", "volumes", "publish", "network", "allow", "env", "cwd", "tty", "filtered", "words")
"""Parameters that mean something with --rootfs alone."""


class _RunCommand(OneLineCommand):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, spread_lists(args))
        except UsageError as exc:
            if not isinstance(exc.__cause__, click.NoSuchOption):
                raise
            rest = without_absent(exc.__cause__.option_name, args)
            if rest is None:
                raise
        return self.parse_args(ctx, rest)


def _options(function: Any) -> Any:
    for option in reversed(OPTIONS):
        function = _option(option)(function)
    return function


def _option(option: RunOption) -> Any:
    keys = ", ".join(f"{key}=" for key in KEYS.get(option.name[2:], ()) if not key.startswith("_"))
    shown: dict[str, Any] = {"metavar": option.metavar, "help": option.help.format(keys=f"{keys}.")}
    if option.kind is bool:
        return click.option(option.name, option.key, is_flag=True, help=shown["help"])
    if option.kind is list:
        return click.option(option.name, multiple=True, **shown)
    if option.kind is bool:
        return once(option.name, option.key, is_flag=True, default=False, help=shown["help"])
    if option.alone is not None:
        shown |= {"is_flag": False, "flag_value": option.alone}
    names = (option.short, option.name) if option.short else (option.name,)
    return once(*names, option.key, type=_type(option), default=option.default, **shown)


def _type(option: RunOption) -> Any:
    if isinstance(option.kind, tuple):
        return click.Choice(option.kind)
    return click.Path(path_type=Path) if option.kind is Path else option.kind


@click.command("run", cls=_RunCommand, context_settings={"help_option_names": ["-h", "--help"]})
@_options
@once(
    "--rootfs",
    type=NAMED,
    help="Run COMMAND in a guest with this root: directory, tar, OCI layout.",
)
@once("--scratch", metavar="SIZE", default="2G", help="With --rootfs: space for what it writes (2G), or memory.")
@click.option(
    "--volume", "volumes", multiple=True, metavar="HOST:GUEST[:ro]", help="With --rootfs: a directory of the host."
)
@click.option(
    "--publish", multiple=True, metavar="HOST:GUEST", help="With --rootfs: a port of the host's loopback (0: any)."
)
@click.option("--network", is_flag=True, help="With --rootfs: a network that needs no privilege (passt).")
@click.option(
    "--allow", multiple=True, metavar="NETWORK|NAME", help="With --rootfs: a network, which reaches this and no more."
)
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="With --rootfs: a variable of its environment.")
@once("-w", "--cwd", help="With --rootfs: in this directory.")
@click.option("-t", "--tty", is_flag=True, help="With --rootfs: give the command a terminal, this one.")
@click.option(
    "--filter", "filtered", is_flag=True, help="With --rootfs: show what draws alone, as --console tty,filter=on."
)
@click.option("-v", "--verbose", count=True, help="Log more (on stderr).")
@version_option
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]")
def command(**args: Any) -> None:
    """Boot a Linux kernel and talk to it. Options are those of the reference monitor, with its syntax and meaning.

    Exit codes: 0 the guest shut down or rebooted, 1 it panicked, was killed, the host failed or its output was lost, 2 wrong
    usage; what a guest runs by `aiovmm image initramfs --run` gives its own. With --rootfs: those of COMMAND, 128 and the number
    of a signal that ended it, 125 if aiovmm could not run it.
    """
    given = {name: args.pop(name) for name in OF_ROOTFS}
    if given["rootfs"] is not None:
        from aiovmm.cli.rootfs import run_in_sandbox

        run_in_sandbox({**given, "user": args.pop("user")}, args)
    for name in OF_ROOTFS:
        if given[name] and name != "scratch":
            if name == "words":
                raise UsageError(f"Got unexpected extra argument ({given[name][0]}): a COMMAND goes with --rootfs")
            raise UsageError(f"--{name.removesuffix('s').removesuffix('ed')}: goes with --rootfs alone")
    start(args, click.get_current_context().obj or ())
