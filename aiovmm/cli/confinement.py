"""What `aiovmm run` gives up of its process's rights: --seccomp, --landlock, --landlock-rules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aiovmm.config import VMConfig
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Confinement"]


@dataclass(frozen=True)
class Confinement:
    """`seccomp`: "true", "false" or "log"; `rules`: texts of --landlock-rules."""

    seccomp: str = "true"
    landlock: bool = False
    rules: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: dict[str, Any]) -> Confinement:
        """Of the command's values. Raises ConfigError."""
        made = cls(args["seccomp"], args["landlock"], args["landlock_rules"])
        made.check()
        return made

    def check(self) -> None:
        """Raise ConfigError for rules that are none, or that nobody would enforce."""
        if not self.rules:
            return
        from aiovmm.config.options import parse_landlock_rule
        from aiovmm.errors import ConfigError

        for rule in self.rules:
            parse_landlock_rule(rule)
        if not self.landlock:
            raise ConfigError("--landlock-rules", "there is nothing that it is a rule of", "say --landlock, too")

    def confine_paths(self, config: VMConfig, events_to: str | None) -> None:
        """Before there are threads, and before anything that a guest has is opened, or the file of events. Raises ConfigError,
        HostError."""
        if not self.landlock:
            return
        from aiovmm.config.options import parse_landlock_rule
        from aiovmm.confine.landlock import confine_paths
        from aiovmm.confine.paths import of_config, of_output, of_program, of_rule
        from aiovmm.errors import ConfigError
        from aiovmm.runtime.user_dirs import find_cache_directory

        if helpers := [net.id or "net" for net in config.nets if net.passt]:
            reason = f"{helpers[0]}'s passt needs namespaces of its own, which nobody who is confined may make"
            raise ConfigError("--landlock", reason, "start passt by yourself: --net vhost_user=on,socket=PATH")
        cache = find_cache_directory()
        if cache is not None:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_sockets_in(cache, config)
        here = Path(__file__).parent.parent  # of an installation by link, which is in no directory of the path
        imported: tuple[str | Path, ...] = (here, *sys.path, sys.prefix, sys.base_prefix)
        grants = [*of_program(imported, cache), *of_config(config)]
        grants += [of_rule(parse_landlock_rule(rule)) for rule in self.rules]
        if events_to is not None and not events_to.isdecimal():
            grants.append(of_output(Path(events_to)))
        confine_paths(grants)

    def confine_calls(self) -> None:
        """Once all is there that the guest is run with, and before it runs. Raises HostError."""
        if self.seccomp == "false":
            return
        from aiovmm.confine.seccomp import confine_calls

        confine_calls(log=self.seccomp == "log")


def _keep_sockets_in(cache: Path | None, config: VMConfig) -> None:
    """QEMU's storage daemon has a socket in the directory of temporary files, which the rest of the system has as well."""
    if not config.disks:
        return
    import tempfile

    from aiovmm.devices.virtio.blk.opening import kind_of
    from aiovmm.errors import ConfigError

    for number, disk in enumerate(config.disks):
        if kind_of(disk) is None:
            continue
        if cache is None:
            reason = f"{disk.id or f'disk{number}'} is QEMU's, whose socket needs a directory of this user's"
            raise ConfigError("--landlock", reason, "set HOME or XDG_CACHE_HOME")
        tempfile.tempdir = str(cache)
