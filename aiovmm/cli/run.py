"""`aiovmm run`: boot a guest, give it the terminal, end with an exit code that says how it ended."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import click

from aiovmm.cli.arguments import LIST_OPTIONS, build_config, refuse_absent, spread_lists
from aiovmm.stdio import require_descriptors

__all__ = ["command"]

_DESCRIPTORS = 16
"""That many are in use before a guest without devices runs: uvloop's, the VM's and its vCPU's."""


class _RunCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            refuse_absent(args)
        return super().parse_args(ctx, spread_lists(args))


_TEXT = {
    "--disk": "path=,readonly=,direct=,num_queues=,queue_size=,serial=,vhost_user=,socket=",
    "--net": "tap=,fd=,ip=,mask=,mac=,mtu=,num_queues=,queue_size=,vhost_user=,socket=",
    "--fs": "tag=,socket=,num_queues=,queue_size=",
    "--pmem": "file=,size=,discard_writes=",
    "--device": "path=/sys/bus/pci/devices/...",
}


def _device_options(function: Any) -> Any:
    for name in reversed(LIST_OPTIONS):
        function = click.option(name, multiple=True, metavar="KEY=VALUE,...", help=_TEXT[name])(function)
    return function


@click.command("run", cls=_RunCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", type=click.Path(path_type=Path), help="bzImage, ELF or PVH kernel image.")
@click.option("--initramfs", type=click.Path(path_type=Path), help="Initial RAM file system.")
@click.option("--cmdline", help="Kernel command line (one that fits the consoles).")
@click.option("--cpus", metavar="N|boot=,max=", help="Processors (1).")
@click.option("--memory", metavar="SIZE|size=,...", help="RAM (512M); size=,shared=,hugepages=,prefault=,thp=.")
@click.option("--serial", metavar="PLACE", help="ttyS0: tty, pty, socket=PATH, file=PATH, null or off.")
@click.option("--console", metavar="PLACE", help="hvc0, likewise.")
@click.option("--rng", metavar="src=", help="Source of entropy (/dev/urandom).")
@_device_options
@click.option("--vsock", metavar="cid=,socket=", help="Socket device to the host.")
@click.option("--platform", metavar="num_pci_segments=", help="PCI segments.")
@click.option(
    "--on-reboot", type=click.Choice(["restart", "exit"]), default="restart", help="What a guest's reboot does."
)
@click.option(
    "--on-panic", type=click.Choice(["restart", "exit"]), default="exit", help="What a reset after a panic does."
)
@click.option("--name", default="vm", help="Name in events and logs.")
@click.option("--detach-keys", default="ctrl-p,ctrl-q", help="Keys that detach the terminal.")
@click.option("--stop-timeout", type=float, default=10.0, help="Seconds a guest has after the power button.")
@click.option(
    "--json",
    "events_to",
    is_flag=False,
    flag_value="2",
    metavar="[=FILE|FD]",
    help="Lifecycle events as JSON lines: to a file or a descriptor of their own, else on stderr.",
)
@click.option("-v", "--verbose", count=True, help="Log more (on stderr).")
def command(**args: Any) -> None:
    """Boot a Linux kernel and talk to it. Options are those of the reference monitor, with its syntax and meaning.

    Exit codes: 0 the guest shut down or rebooted, 1 it panicked, was killed, the host failed or its output was lost, 2 wrong
    usage; what a guest runs by `aiovmm image initramfs --run` gives its own.
    """
    config = build_config(args)
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
