"""`aiovmm run --restore`: the guest of a snapshot, in the place of one that boots."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote as percent_decoded

from aiovmm.config import ConsoleMode, VMConfig
from aiovmm.config import options as parse
from aiovmm.config.text import split_options, to_bool, unquote
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass, replace
from aiovmm.snapshot.configuration import changed
from aiovmm.snapshot.restoring import Source, open_source
from aiovmm.vm import VM

__all__ = ["Restore", "parse_restore"]

_GOES_WITH = {
    "serial",
    "console",
    "name",
    "restore",
    "control_socket",
    "detach_keys",
    "stop_timeout",
    "events_to",
    "verbose",
}
_GOES_WITH |= {
    "event_monitor",
    "log_file",
    "log_format",
    "no_shutdown",
    "seccomp",
    "landlock",
    "landlock_rules",
    "user",
}
_HAS_DEFAULT = {"on_reboot", "on_panic"}


def parse_restore(text: str) -> tuple[Path, bool]:
    """`source_url=file://DIR,prefault=on`: the directory, and whether all of its memory is to be read at once. Raises
    ConfigError."""
    values = split_options("restore", text)
    url, prefault = values.pop("source_url", None), values.pop("prefault", None)
    if values:
        raise ConfigError(f"restore.{next(iter(values))}", "is not known", "known: source_url, prefault")
    if not url:
        raise ConfigError("restore.source_url", "is missing", "say source_url=file://DIR")
    scheme, separator, path = unquote(url).partition("://")
    if scheme != "file" or not separator or not path:
        raise ConfigError("restore.source_url", f"{url!r} is no directory here", "like file:///var/lib/guest")
    return Path(percent_decoded(path)), to_bool("restore.prefault", prefault) if prefault else False


@dataclass(eq=False)
class Restore:
    """A snapshot that was opened, and the configuration of the guest that goes on from it."""

    config: VMConfig
    source: Source
    prefault: bool

    @classmethod
    def of(cls, args: dict[str, Any]) -> Self:
        """Of the options' values. Raises ConfigError, SnapshotError, HostError."""
        for key, value in args.items():
            if value not in (None, (), False) and key not in _GOES_WITH | _HAS_DEFAULT:
                raise ConfigError(
                    f"--{key.replace('_', '-')}", "does not go with --restore", "the snapshot has the machine"
                )
        path, prefault = parse_restore(args["restore"])
        source = open_source(path)
        try:
            changes: dict[str, Any] = {
                name: parse.parse_console(name, args[name]) for name in ("serial", "console") if args[name] is not None
            }
            if args["name"] != "vm":
                changes["name"] = args["name"]
            return cls(_without_lost_places(changed(source.config, changes), changes), source, prefault)
        except BaseException:
            source.close()
            raise

    def vm(self) -> VM:
        """To be entered, once. The snapshot is closed with its memory."""
        return self.source.vm(VM, self.config, prefault=self.prefault, last=True)


def _without_lost_places(config: VMConfig, given: dict[str, Any]) -> VMConfig:
    """A pseudo terminal was another one's; what a program had read is shown on this terminal, if nothing else is said."""
    if (
        "serial" not in given
        and config.serial.mode is ConsoleMode.NULL
        and config.console.mode
        in (
            ConsoleMode.NULL,
            ConsoleMode.OFF,
        )
    ):
        return replace(config, serial=replace(config.serial, mode=ConsoleMode.TTY))
    return config
