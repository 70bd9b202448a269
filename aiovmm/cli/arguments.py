"""`aiovmm run`'s arguments: the reference monitor's options, in its own syntax, into a VMConfig."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiovmm.config import (
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    MemoryConfig,
    PayloadConfig,
    PlatformConfig,
    RebootPolicy,
    RngConfig,
    VMConfig,
)
from aiovmm.config import options as parse
from aiovmm.errors import ConfigError

__all__ = ["LIST_OPTIONS", "NOT_THERE", "build_config", "refuse_absent", "spread_lists"]

LIST_OPTIONS = ("--disk", "--net", "--fs", "--pmem", "--device")

NOT_THERE = (
    "--api-socket",
    "--balloon",
    "--debug-console",
    "--event-monitor",
    "--firmware",
    "--gdb",
    "--igvm",
    "--landlock",
    "--landlock-rules",
    "--log-file",
    "--memory-zone",
    "--numa",
    "--pvmemcontrol",
    "--pvpanic",
    "--rate-limit-group",
    "--restore",
    "--seccomp",
    "--sgx-epc",
    "--tpm",
    "--user-device",
    "--vdpa",
    "--watchdog",
)
"""Options of the reference monitor that are refused by name."""


def spread_lists(args: Sequence[str]) -> list[str]:
    """The reference takes `--disk a b` for `--disk a --disk b`; write it out, as click wants it."""
    spread: list[str] = []
    current: str | None = None
    for arg in args:
        if arg.startswith("-"):
            current = arg if arg in LIST_OPTIONS else None
            spread.append(arg)
        elif current is not None and spread[-1] != current:
            spread += [current, arg]
        else:
            spread.append(arg)
    return spread


def _consoles(serial: str | None, console: str | None, cmdline: str | None) -> tuple[ConsoleConfig, ConsoleConfig]:
    """Where one is not given, the terminal goes to the console that the command line names last, or else to ttyS0."""
    names = [word[8:] for word in (cmdline or "").split() if word.startswith("console=")]
    on_hvc = bool(names) and names[-1].startswith("hvc")
    if console is not None:
        console_config = parse.parse_console("console", console)
    else:
        console_config = ConsoleConfig(ConsoleMode.TTY if on_hvc and serial != "tty" else ConsoleMode.OFF)
    if serial is not None:
        serial_config = parse.parse_console("serial", serial)
    else:
        has_terminal = on_hvc or console_config.mode is ConsoleMode.TTY
        serial_config = ConsoleConfig(ConsoleMode.NULL if has_terminal else ConsoleMode.TTY)
    return serial_config, console_config


def _each(texts: Sequence[str], parser: Callable[[str], Any]) -> tuple[Any, ...]:
    return tuple(parser(text) for text in texts)


def build_config(args: dict[str, Any]) -> VMConfig:
    """The VMConfig for click's values. Raises ConfigError."""
    if args["kernel"] is None:
        raise ConfigError("--kernel", "is missing", "`aiovmm image kernel` finds or fetches one")
    initramfs: Path | None = args["initramfs"]
    cmdline: str | None = args["cmdline"]
    serial, console = _consoles(args["serial"], args["console"], cmdline)
    return VMConfig(
        payload=PayloadConfig(args["kernel"], initramfs, cmdline),
        cpus=parse.parse_cpus(args["cpus"]) if args["cpus"] else CpusConfig(),
        memory=parse.parse_memory(args["memory"]) if args["memory"] else MemoryConfig(),
        serial=serial,
        console=console,
        rng=parse.parse_rng(args["rng"]) if args["rng"] else RngConfig(),
        disks=_each(args["disk"], parse.parse_disk),
        nets=_each(args["net"], parse.parse_net),
        vsock=parse.parse_vsock(args["vsock"]) if args["vsock"] else None,
        pmems=_each(args["pmem"], parse.parse_pmem),
        fs=_each(args["fs"], parse.parse_fs),
        devices=_each(args["device"], parse.parse_device),
        platform=parse.parse_platform(args["platform"]) if args["platform"] else PlatformConfig(),
        on_reboot=RebootPolicy(args["on_reboot"]),
        on_panic=RebootPolicy(args["on_panic"]),
        name=args["name"],
    )


def refuse_absent(args: Sequence[str]) -> None:
    """Raise ConfigError for an option that is not there, by its name."""
    for arg in args:
        name = arg.partition("=")[0]
        if name in NOT_THERE:
            raise ConfigError(name, "is an option of the reference monitor that aiovmm does not have")
