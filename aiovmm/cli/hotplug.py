"""`aiovmm add`, `aiovmm remove`, `aiovmm resize`: change a guest that another `aiovmm run` has, while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aiovmm.cli.messages import say
from aiovmm.cli.usage import NAMED, OneLineCommand, Seconds, once
from aiovmm.errors import UsageError

__all__ = ["add", "remove", "resize"]

Decorator = Callable[[Any], Any]
_SETTINGS = {"help_option_names": ["-h", "--help"]}
_SOCKET = click.argument("socket", type=NAMED)


def _timeout(default: float, more: str = "") -> Decorator:
    kind = Seconds(86400)
    return once("--timeout", type=kind, default=default, help=f"Seconds that the guest has for it ({default:g}){more}.")


def _device(name: str) -> Decorator:
    return click.option(f"--{name}", multiple=True, metavar="KEY=VALUE,...", help="As for `aiovmm run`.")


def _devices(function: Callable[..., None]) -> Any:
    from aiovmm.cli.changes import DEVICES

    for name in reversed(list(DEVICES)):
        function = _device(name)(function)
    return function


@click.command("add", cls=OneLineCommand, context_settings=_SETTINGS)
@_SOCKET
@_devices
@_timeout(30.0, "; 0: it is told, and not waited for")
def add(socket: Path, timeout: float, **texts: tuple[str, ...]) -> None:
    """Plug devices into the guest of `aiovmm run --control-socket SOCKET`, and print the id of each, by which `aiovmm remove`
    knows it.

    A guest that does not look at a device in time has not got it.
    """
    wanted = [(name.replace("_", "-"), text) for name, given in texts.items() for text in given]
    if not wanted:
        raise UsageError("add: names no device, like --disk path=IMAGE")
    for option, text in wanted:
        asked = {"do": "add", "option": option, "text": text, "cwd": os.getcwd(), "timeout": timeout}
        answer = _ask(socket, asked, id=str, place=str)
        print(answer["id"], flush=True)
        if answer["place"]:
            say(f"{answer['id']} is at {answer['place']}")


@click.command("remove", cls=OneLineCommand, context_settings=_SETTINGS)
@_SOCKET
@click.argument("id_", metavar="ID")
@once("--force", is_flag=True, help="Take it out all the same after that time, as by pulling a plug.")
@_timeout(30.0)
def remove(socket: Path, id_: str, force: bool, timeout: float) -> None:
    """Have the guest of `aiovmm run --control-socket SOCKET` let go of a device, and take it out.

    A guest that does not let go in time keeps it, and stays asked.
    """
    _ask(socket, {"do": "remove", "id": id_, "force": bool(force), "timeout": timeout})


@click.command("resize", cls=OneLineCommand, context_settings=_SETTINGS)
@_SOCKET
@once("--cpus", type=click.IntRange(1), help="Processors, up to `--cpus max=` of `aiovmm run`.")
@once("--memory", metavar="SIZE", help="Memory in all, up to hotplug_size more than the guest was made with.")
@once("--zone", metavar="ID", help="--memory is that of this zone, up to its own hotplug_size more.")
@_timeout(60.0)
def resize(socket: Path, cpus: int | None, memory: str | None, zone: str | None, timeout: float) -> None:
    """Give the guest of `aiovmm run --control-socket SOCKET` more processors or memory, or less.

    It ends when the guest has taken it, or given it back.
    """
    from aiovmm.config.text import to_size

    if cpus is None and memory is None:
        raise UsageError("resize: takes --cpus, --memory, or both")
    if zone is not None and memory is None:
        raise UsageError("resize: --zone goes with --memory")
    size = None if memory is None else to_size("--memory", memory)
    _ask(socket, {"do": "resize", "cpus": cpus, "memory": size, "zone": zone, "timeout": timeout})


def _ask(socket: Path, what: dict[str, Any], **has: type) -> dict[str, Any]:
    from aiovmm.cli.control import ask
    from aiovmm.cli.loops import run

    return run(lambda: ask(socket, what, **has))
