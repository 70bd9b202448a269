"""`aiovmm run`: boot a guest, give it the terminal, end with an exit code that says how it ended."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import click

from aiovmm.cli.arguments import LIST_OPTIONS, build_config, check_seconds, spread_lists, without_absent
from aiovmm.cli.usage import OneLineCommand, once, version_option
from aiovmm.config.options import KEYS
from aiovmm.errors import UsageError
from aiovmm.runtime.stdio import require_descriptors

__all__ = ["command"]

_DESCRIPTORS = 16
"""That many are in use before a guest without devices runs: uvloop's, the VM's and its vCPU's."""


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


def _keys(option: str) -> str:
    """For the help."""
    return ", ".join(f"{key}=" for key in KEYS[option] if not key.startswith("_")) + "."


def _device_options(function: Any) -> Any:
    for name in reversed(LIST_OPTIONS):
        function = click.option(name, multiple=True, metavar="KEY=VALUE,...", help=_keys(name[2:]))(function)
    return function


_POLICY = click.Choice(["restart", "exit"])


@click.command("run", cls=_RunCommand, context_settings={"help_option_names": ["-h", "--help"]})
@once("--kernel", type=click.Path(path_type=Path), help="bzImage, ELF or PVH kernel image.")
@once("--initramfs", type=click.Path(path_type=Path), help="Initial RAM file system.")
@once("--cmdline", help="Kernel command line (one that fits the consoles).")
@once("--cpus", metavar="N|KEY=VALUE,...", help=f"Processors (1). {_keys('cpus')}")
@once("--memory", metavar="SIZE|KEY=VALUE,...", help=f"RAM (512M). {_keys('memory')}")
@once("--serial", metavar="PLACE", help="ttyS0: tty, pty, socket=PATH, file=PATH, null or off.")
@once("--console", metavar="PLACE[,KEY=VALUE...]", help="hvc0, likewise; id=, pci_segment=, pci_device_id=, iommu=.")
@once("--rng", metavar="KEY=VALUE,...", help=f"Source of entropy (/dev/urandom). {_keys('rng')}")
@_device_options
@once("--vsock", metavar="KEY=VALUE,...", help=f"Socket device to the host. {_keys('vsock')}")
@once("--platform", metavar="KEY=VALUE,...", help=f"PCI segments. {_keys('platform')}")
@once("--on-reboot", type=_POLICY, default="restart", help="What a guest's reboot does (restart).")
@once("--on-panic", type=_POLICY, default="exit", help="What a reset after a panic does (exit).")
@once("--name", default="vm", help="Name in events and logs.")
@once("--detach-keys", default="ctrl-p,ctrl-q", help="Keys that detach the terminal (ctrl-p,ctrl-q).")
@once("--stop-timeout", type=float, default=10.0, help="Seconds a guest has after the power button (10).")
@once(
    "--json",
    "events_to",
    is_flag=False,
    flag_value="2",
    metavar="[=FILE|FD]",
    help="Lifecycle events as JSON lines: to a file or a descriptor of their own, else on stderr.",
)
@click.option("-v", "--verbose", count=True, help="Log more (on stderr).")
@version_option
def command(**args: Any) -> None:
    """Boot a Linux kernel and talk to it. Options are those of the reference monitor, with its syntax and meaning.

    Exit codes: 0 the guest shut down or rebooted, 1 it panicked, was killed, the host failed or its output was lost, 2 wrong
    usage; what a guest runs by `aiovmm image initramfs --run` gives its own.
    """
    config = build_config(args)
    check_seconds("--stop-timeout", args["stop_timeout"])
    gc.disable()  # what a start imports and makes is no garbage; the session enables it when the guest runs
    try:
        import asyncio

        import uvloop

        from aiovmm.cli.session import Session

        session = Session(
            config,
            detach_keys=args["detach_keys"],
            stop_timeout=args["stop_timeout"],
            events_to=args["events_to"],
            verbosity=args["verbose"],
            closed=click.get_current_context().obj or (),
        )
        require_descriptors(_DESCRIPTORS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(session.run()))
    finally:  # also where it never ran: whoever called this in his own process goes on
        gc.enable()
