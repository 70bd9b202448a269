"""`aiovmm run`'s arguments: the reference monitor's options, in its own syntax, into a VMConfig."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiovmm import architecture
from aiovmm.cli.run_options import BY_NAME, LIST_OPTIONS
from aiovmm.config import (
    ConsoleConfig,
    ConsoleMode,
    CpusConfig,
    DebugConsoleConfig,
    LimitsConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    PlatformConfig,
    RebootPolicy,
    RngConfig,
    VMConfig,
)
from aiovmm.config import options as parse
from aiovmm.errors import ConfigError
from aiovmm.runtime.remarks import remark
from aiovmm.runtime.stdio import was_given

__all__ = ["build_config", "check_outputs", "check_seconds", "refuse_our_own", "spread_lists", "without_absent"]

_UNSEEN = (ConsoleMode.OFF, ConsoleMode.NULL)
_YEAR = 366 * 86400.0


def spread_lists(args: Sequence[str]) -> list[str]:
    """The reference takes `--disk a b` for `--disk a --disk b`; write it out, as click wants it. Raises ConfigError for an option
    that would take the next one for its value."""
    spread: list[str] = []
    current, filled = "", False
    for at, arg in enumerate(args):
        if arg == "--":  # what comes then is not ours
            return [*spread, *args[at:]]
        if arg.startswith("-"):
            name, separator, _ = arg.partition("=")
            if name in BY_NAME and BY_NAME[name].wants_value and not separator:
                _refuse_option(name, args[at + 1 : at + 2])
            current, filled = name if name in LIST_OPTIONS else "", bool(separator)
        elif current and filled:
            spread.append(current)
        else:
            filled = True
        spread.append(arg)
    return spread


def _refuse_option(name: str, value: Sequence[str]) -> None:
    for word in value:
        if word.partition("=")[0] in BY_NAME:
            raise ConfigError(name, "has no value", f"{word} after it is an option; if it is the value: {name}={word}")


def _last_console(cmdline: str | None) -> str:
    """ "serial" or "hvc", what the command line names last; "" if it names neither, and "serial" if one is to be made."""
    if cmdline is None:
        return "serial"
    names = [word[8:] for word in cmdline.split() if word.startswith("console=")]
    kinds = {architecture.host().serial.rstrip("0"): "serial", "hvc": "hvc"}
    return next((kind for name, kind in kinds.items() if names and names[-1].startswith(name)), "")


def _consoles(serial: str | None, console: str | None, cmdline: str | None) -> tuple[ConsoleConfig, ConsoleConfig]:
    """Both are there. One that is not given is on the terminal if the command line names it last, or names neither, or if the
    other one can be seen nowhere: a guest is mute only if both were told to be."""
    last = _last_console(cmdline)
    there = None if serial is None else parse.parse_console("serial", serial)
    other = None if console is None else parse.parse_console("console", console)
    if other is None:
        seen = last == "serial" and (there is None or there.mode not in _UNSEEN)
        other = ConsoleConfig(ConsoleMode.NULL if seen else ConsoleMode.TTY)
    if there is None:
        seen = other.mode is ConsoleMode.TTY if cmdline is None else last == "hvc" and other.mode not in _UNSEEN
        there = ConsoleConfig(ConsoleMode.NULL if seen else ConsoleMode.TTY)
    return there, other


def _each(texts: Sequence[str], parser: Callable[[str], Any]) -> tuple[Any, ...]:
    return tuple(parser(text) for text in texts)


def build_config(args: dict[str, Any]) -> VMConfig:
    """The VMConfig for click's values. Raises ConfigError."""
    kernel: Path | None = _file("--kernel", args["kernel"])
    if kernel is None:
        raise ConfigError("--kernel", "is missing", "`aiovmm image kernel` finds or fetches one")
    cmdline: str | None = args["cmdline"]
    serial, console = _consoles(args["serial"], args["console"], cmdline)
    if cmdline is None and args["console"] is None and console.mode is ConsoleMode.NULL:
        cmdline = f"console={architecture.host().serial} panic=-1"  # what nobody sees need not be printed twice
    nets = _each(args["net"], parse.parse_net)
    refuse_our_own(nets)
    return VMConfig(
        payload=PayloadConfig(kernel, _initramfs(args["initramfs"]), cmdline),
        cpus=_or(args["cpus"], parse.parse_cpus, CpusConfig),
        memory=_or(args["memory"], parse.parse_memory, MemoryConfig),
        memory_zones=_each(args["memory_zone"], parse.parse_memory_zone),
        numa=_each(args["numa"], parse.parse_numa),
        serial=serial,
        console=console,
        rng=_or(args["rng"], parse.parse_rng, RngConfig),
        disks=_each(args["disk"], parse.parse_disk),
        nets=nets,
        vsock=_or(args["vsock"], parse.parse_vsock, lambda: None),
        pmems=_each(args["pmem"], parse.parse_pmem),
        fs=_each(args["fs"], parse.parse_fs),
        devices=_each(args["device"], parse.parse_device),
        balloon=_or(args["balloon"], parse.parse_balloon, lambda: None),
        watchdog=_or(args["watchdog"], parse.parse_watchdog, lambda: None),
        pvpanic=_or(args["pvpanic"], parse.parse_pvpanic, lambda: None),
        rtc=_or(args["rtc"], parse.parse_rtc, lambda: None),
        generic_vhost_user=_each(args["generic_vhost_user"], parse.parse_generic_vhost_user),
        debug_console=_or(args["debug_console"], parse.parse_debug_console, DebugConsoleConfig),
        rate_limit_groups=_each(args["rate_limit_group"], parse.parse_rate_limit_group),
        pci_segments=_each(args["pci_segment"], parse.parse_pci_segment),
        limits=_or(args["limits"], parse.parse_limits, LimitsConfig),
        platform=_or(args["platform"], parse.parse_platform, PlatformConfig),
        on_reboot=RebootPolicy(args["on_reboot"]),
        on_panic=RebootPolicy(args["on_panic"]),
        name=args["name"],
    )


def _or(text: str | None, parser: Callable[[str], Any], default: Callable[[], Any]) -> Any:
    return default() if text is None else parser(text)


def _file(option: str, path: Path | None) -> Path | None:
    if path == Path():  # what an empty argument makes, and the working directory
        raise ConfigError(option, "is no file", "an empty value is the working directory")
    return path


def _initramfs(path: Path | None) -> Path | None:
    """None for an empty file, which is none to a kernel, either."""
    path = _file("--initramfs", path)
    if path is not None and os.path.isfile(path) and not os.path.getsize(path):
        remark(f"--initramfs: {path} is empty: the guest has none")
        return None
    return path


def check_outputs(log_file: str | None, control_socket: Path | None) -> None:
    """Raise ConfigError for what can be no place of theirs, before there is a guest."""
    if log_file == "":
        raise ConfigError("--log-file", "is no file", "its value is empty")
    _file("--control-socket", control_socket)
    if control_socket is not None:
        from aiovmm.runtime.stream_socket import socket_path  # for who has one

        try:
            socket_path(control_socket)
        except OSError as exc:
            raise ConfigError("--control-socket", "is too long", str(exc.strerror)) from exc


def check_seconds(option: str, seconds: float) -> None:
    """Raise ConfigError for what is no time to wait for: a float may be negative, infinite, or no number."""
    if not 0 <= seconds <= _YEAR:
        raise ConfigError(option, f"{seconds:g} is not a number of seconds in 0..{_YEAR:g}")


def without_absent(name: str, args: list[str]) -> list[str] | None:
    """`args` less one option of the reference that is not there, if it says what is so here anyway: `--seccomp false`. None if
    `name` is no option of the reference; raises ConfigError, with the reason, if it asks for something."""
    from aiovmm.config.reference import asks_for_nothing, why_not

    for at, arg in enumerate(args):
        given, separator, value = arg.partition("=")
        end = at + 1 if separator else at + 2
        if given == name and asks_for_nothing(name, "", value if separator else "".join(args[at + 1 : end])):
            return args[:at] + args[end:]
    if reason := why_not(name):
        raise ConfigError(name, f"is an option of the reference monitor that aiovmm does not have: {reason}")
    return None


def refuse_our_own(nets: Sequence[NetConfig]) -> None:
    """A number that nobody has passed on may be one of the event loop's: it would be taken for the network."""
    for fd in (fd for net in nets for fd in net.fd):
        if not was_given(fd):
            hint = "whoever starts it passes it on: `3<>/dev/tap5` in a shell, `pass_fds` in Python"
            raise ConfigError("net.fd", f"no descriptor {fd} was given to this program", hint)
