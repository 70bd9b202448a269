"""`aiovmm run --restore`: the guest of a snapshot, in the place of one that boots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote as percent_decoded

from aiovmm.cli.arguments import refuse_our_own
from aiovmm.config import ConsoleMode, NetConfig, VMConfig
from aiovmm.config import options as parse
from aiovmm.config.ids import device_ids
from aiovmm.config.text import split_options, to_bool, to_ints, to_words, unquote
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass, replace
from aiovmm.snapshot.configuration import changed
from aiovmm.snapshot.restoring import Source, bound_of, open_source
from aiovmm.vm import VM

__all__ = ["Restore", "Wanted", "parse_restore"]

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
_KEYS = ("source_url", "prefault", "memory_restore_mode", "net_fds", "resume", "within")
_NOT_THERE = {
    "vfio_fds": "is not there: no guest with devices of the host is saved",
    "iommufd_fd": "is not there: no guest with devices of the host is saved",
    "zone_updates": "is not there: memory is the snapshot's file, and on no node of its own",
}


class Wanted(NamedTuple):
    """What `--restore` says: the directory, whether all of its memory is to be read at once, and descriptors for the cards that
    are on some, by their ids; and below which directory all is that a snapshot of others' names."""

    path: Path
    prefault: bool = False
    net_fds: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    within: Path | None = None


def parse_restore(text: str) -> Wanted:
    """`source_url=file://DIR,prefault=on`, or `memory_restore_mode=copy`, which is the same; `net_fds=[net0@[3,4]]`. Raises
    ConfigError."""
    values = split_options("restore", text)
    if unknown := [key for key in values if key not in _KEYS]:
        reason = _NOT_THERE.get(unknown[0], "is not known")
        raise ConfigError(f"restore.{unknown[0]}", reason, f"known: {', '.join(_KEYS)}")
    said = {key: unquote(value) for key, value in values.items() if value}
    url = said.get("source_url", "")
    if not url:
        raise ConfigError("restore.source_url", "is missing", "say source_url=file://DIR")
    scheme, separator, path = url.partition("://")
    if scheme != "file" or not separator or not path:
        raise ConfigError("restore.source_url", f"{url!r} is no directory here", "like file:///var/lib/guest")
    if "resume" in said and not to_bool("restore.resume", said["resume"]):
        raise ConfigError("restore.resume", "is not off: nobody could have the guest go on then", "leave it out")
    if "within" in values and "within" not in said:  # a variable that nobody has set is no bound
        raise ConfigError("restore.within", "is empty", "say within=DIR, or leave it out")
    within = Path(said["within"]) if "within" in said else None
    descriptors = _descriptors(values.get("net_fds") or "")
    return Wanted(Path(percent_decoded(path)), _reads_at_once(said), descriptors, within)


def _reads_at_once(said: Mapping[str, str]) -> bool:
    prefault = to_bool("restore.prefault", said["prefault"]) if "prefault" in said else False
    mode = said.get("memory_restore_mode", "").lower()
    if mode not in ("", "copy", "ondemand"):
        raise ConfigError("restore.memory_restore_mode", f"{mode!r} is neither copy nor ondemand")
    if mode == "ondemand" and prefault:
        raise ConfigError("restore.prefault", "does not go with memory_restore_mode=ondemand", "one of them is enough")
    return prefault or mode == "copy"


def _descriptors(text: str) -> Mapping[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for element in to_words("restore.net_fds", text) if text else ():
        id_, separator, fds = element.partition("@")
        if not separator or not id_ or id_ in found:
            raise ConfigError("restore.net_fds", f"{element!r} is no card with its descriptors", "like [net0@[3,4]]")
        found[id_] = to_ints("restore.net_fds", fds)
    return found


def _on_descriptors(config: VMConfig, fds: Mapping[str, tuple[int, ...]]) -> tuple[NetConfig, ...]:
    """The cards, those that were on descriptors of the program that was saved on these."""
    ids = device_ids(config).get("nets", ())
    wanting = {id_ for id_, net in zip(ids, config.nets, strict=True) if net.fd}
    if unknown := sorted(fds.keys() - wanting):
        raise ConfigError("restore.net_fds", f"there is no card {unknown[0]!r} that is on descriptors")
    if missing := sorted(wanting - fds.keys()):
        hint = f"say net_fds=[{missing[0]}@[3]]"
        raise ConfigError("restore.net_fds", f"{missing[0]!r} was on descriptors, and needs some again", hint)
    nets = tuple(replace(net, fd=fds[id_]) if net.fd else net for id_, net in zip(ids, config.nets, strict=True))
    refuse_our_own(nets)
    return nets


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
        wanted = parse_restore(args["restore"])
        bound = None if wanted.within is None else bound_of(wanted.within)
        source = open_source(wanted.path, bound)
        try:
            changes: dict[str, Any] = {
                name: parse.parse_console(name, args[name]) for name in ("serial", "console") if args[name] is not None
            }
            if wanted.net_fds or any(net.fd for net in source.config.nets):
                changes["nets"] = _on_descriptors(source.config, wanted.net_fds)
            if args["name"] != "vm":
                changes["name"] = args["name"]
            config = _without_lost_places(changed(source.config, changes), changes)
            if bound is not None:
                bound.check(wanted.path, source.config, config)
            return cls(config, source, wanted.prefault)
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
