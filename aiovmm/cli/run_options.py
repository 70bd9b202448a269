"""`aiovmm run`'s options as a table. click makes its command of them (cli.run): its help, and what it says of wrong usage.

To import click, and to have it make that, takes as long as all that a guest is made of. A command line with nothing wrong in it,
and with no question either, is read here; `read_plain` gives up at anything else, which click then reads from the start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiovmm.runtime.dataclass import dataclass

__all__ = ["BY_NAME", "LIST_OPTIONS", "OPTIONS", "RunOption", "read_plain"]


@dataclass(frozen=True)
class RunOption:
    """`help` may name the option's `{keys}`. `kind` is a type (bool: it has no value), the words to choose from, or list for
    one that may be repeated. With `alone`, its value may be left out and then is that."""

    name: str
    help: str
    metavar: str | None = None
    kind: type | tuple[str, ...] = str
    default: Any = None
    dest: str = ""
    alone: str | None = None
    short: str = ""

    @property
    def wants_value(self) -> bool:
        """Whether a word has to follow it."""
        return self.kind is not bool and self.alone is None

    @property
    def key(self) -> str:
        """What its value is passed on as."""
        return self.dest or self.name[2:].replace("-", "_")


_POLICIES = ("restart", "exit")
_SECCOMP = ("true", "false", "log", "errno")
_KEYS = "KEY=VALUE,..."

OPTIONS = (
    RunOption("--kernel", "Kernel: bzImage, ELF or PVH; on arm64 Image, Image.gz, zboot.", kind=Path),
    RunOption("--initramfs", "Initial RAM file system.", kind=Path),
    RunOption("--cmdline", "Kernel command line (one that fits the consoles)."),
    RunOption("--cpus", "Processors (1). {keys}", f"N|{_KEYS}"),
    RunOption("--memory", "RAM (512M). {keys}", f"SIZE|{_KEYS}"),
    RunOption("--memory-zone", "A part of RAM with its own backing. {keys}", _KEYS, list),
    RunOption("--numa", "A NUMA node of the guest. {keys}", _KEYS, list),
    RunOption("--serial", "The serial port: tty, pty, socket=PATH, file=PATH, null or off.", "PLACE"),
    RunOption("--console", "hvc0, likewise; id=, pci_segment=, pci_device_id=, iommu=.", "PLACE[,KEY=VALUE...]"),
    RunOption("--rng", "Source of entropy (/dev/urandom). {keys}", f"[={_KEYS}]", alone=""),
    RunOption("--disk", "{keys}", _KEYS, list),
    RunOption("--net", "{keys}", _KEYS, list),
    RunOption("--fs", "{keys}", _KEYS, list),
    RunOption("--pmem", "{keys}", _KEYS, list),
    RunOption("--device", "{keys}", _KEYS, list),
    RunOption("--rate-limit-group", "{keys}", _KEYS, list),
    RunOption("--vsock", "Socket device to the host. {keys}", _KEYS),
    RunOption("--balloon", "Memory that the guest gives back. {keys}", _KEYS),
    RunOption("--watchdog", "A watchdog that resets a guest that hangs. {keys}", f"[={_KEYS}]", alone=""),
    RunOption("--pvpanic", "The guest's kernel says itself that it panicked. {keys}", f"[={_KEYS}]", alone=""),
    RunOption("--rtc", "virtio-rtc, the host's clock. {keys}", f"[={_KEYS}]", alone=""),
    RunOption("--generic-vhost-user", "{keys}", _KEYS, list),
    RunOption("--debug-console", "A port that prints, as --serial; iobase=0xe9.", "PLACE[,iobase=PORT]"),
    RunOption("--pci-segment", "Shares of a PCI segment in the address space. {keys}", _KEYS, list),
    RunOption("--platform", "PCI segments, and who the machine is. {keys}", _KEYS),
    RunOption("--limits", "What the guest may at most. {keys}", _KEYS),
    RunOption("--on-reboot", "What a guest's reboot does (restart).", kind=_POLICIES, default="restart"),
    RunOption("--on-panic", "What a reset after a panic does (exit).", kind=_POLICIES, default="exit"),
    RunOption("--no-shutdown", "Stay when the guest has powered off, until a signal.", kind=bool, default=False),
    RunOption("--event-monitor", "Events as the reference's JSON objects.", "path=FILE|fd=FD"),
    RunOption("--log-file", "Log there, and not on stderr.", "FILE"),
    RunOption("--log-format", "Template of the log's lines: {{level}}, {{msg}}, ..."),
    RunOption(
        "--seccomp",
        "Refuse system calls that a monitor does not make (true), or log them.",
        kind=_SECCOMP,
        default="true",
    ),
    RunOption("--landlock", "Refuse paths that are not configured, or in --landlock-rules.", kind=bool, default=False),
    RunOption(
        "--namespaces",
        "Have no path but what is configured, or in --landlock-rules: mounts and, of who is not root, users of its own.",
        kind=bool,
        default=False,
    ),
    RunOption("--landlock-rules", "{keys}", _KEYS, list),
    RunOption(
        "--user",
        "--host-user, and with --rootfs another: whom COMMAND runs as in the guest.",
        "NAME|UID[:GID]",
        short="-u",
    ),
    RunOption(
        "--host-user",
        "Be this user of the host, who is not root, once all is open. With --rootfs: from the beginning.",
        "NAME|UID[:GID]",
    ),
    RunOption("--name", "Name in events and logs.", default="vm"),
    RunOption(
        "--restore",
        "Go on from a snapshot; then only consoles and a name are given.",
        "source_url=file://DIR[,prefault=on][,within=DIR]",
    ),
    RunOption("--control-socket", "A unix socket for `aiovmm snapshot`, `add`, `remove`, `resize`.", "PATH", kind=Path),
    RunOption("--detach-keys", "Keys that detach the terminal (ctrl-p,ctrl-q).", default="ctrl-p,ctrl-q"),
    RunOption("--stop-timeout", "Seconds a guest has after the power button (10).", kind=float, default=10.0),
    RunOption(
        "--json",
        "Lifecycle events as JSON lines: to a file or a descriptor of their own, else on stderr.",
        "[=FILE|FD]",
        dest="events_to",
        alone="2",
    ),
)
LIST_OPTIONS = tuple(option.name for option in OPTIONS if option.kind is list)
BY_NAME = {option.name: option for option in OPTIONS}


def read_plain(args: Sequence[str]) -> dict[str, Any] | None:
    """Values of all options by `RunOption.key`, as click gives them, and `verbose`. None for what is better left to click."""
    values: dict[str, Any] = {option.key: () if option.kind is list else option.default for option in OPTIONS}
    given: set[str] = set()
    values["verbose"] = 0
    rest = list(reversed(args))
    while rest:
        word = rest.pop()
        if word in ("-v", "--verbose"):
            values["verbose"] += 1
            continue
        name, separator, text = word.partition("=")
        option = BY_NAME.get(name)
        if option is None or (option.kind is not list and name in given):
            return None
        given.add(name)
        if option.kind is bool:
            if separator:
                return None
            values[option.key] = True
            continue
        if not separator:
            if option.alone is not None and (not rest or rest[-1].startswith("-")):
                values[option.key] = option.alone
                continue
            if not rest:
                return None
            text = rest.pop()
        if (value := _value(option, text)) is None:
            return None
        if option.kind is not list:
            values[option.key] = value
            continue
        values[option.key] += (value,)
        while rest and not rest[-1].startswith("-"):
            values[option.key] += (rest.pop(),)
    return values


def _value(option: RunOption, text: str) -> Any:
    """What click makes of it, or None for what it may refuse."""
    if not text or text.startswith("-"):
        return None
    if option.kind is Path:
        return Path(text) if _readable(text) else None
    if option.kind is float:
        try:
            return float(text)
        except ValueError:
            return None
    if isinstance(option.kind, tuple):
        return text if text in option.kind else None
    return text


def _readable(path: str) -> bool:
    """Or not there, of which others tell."""
    try:
        return os.access(path, os.R_OK) or not os.access(path, os.F_OK)
    except ValueError:
        return False
