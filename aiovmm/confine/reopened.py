"""What is opened again while a guest runs, by its reset or a peer's: whoever gives up being root has to be able to, and is told
at once. Everything else that a guest has stays open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from aiovmm.config import VhostMode, VMConfig
from aiovmm.confine.identity import Identity
from aiovmm.errors import ConfigError

__all__ = ["check_reopened", "reopened"]

_SERVED = (("net", "nets"), ("disk", "disks"), ("fs", "fs"), ("generic-vhost-user", "generic_vhost_user"))


def reopened(config: VMConfig) -> Iterator[tuple[str, Path, int]]:
    """(option, path, access as os.access takes it) of each. Raises ConfigError for what only root can have again."""
    if config.devices:
        reason = "a reset pins the guest's memory for it anew and opens its group again, which is root's to do"
        raise ConfigError("--device", reason, "run that guest as root, or leave --user out")
    for option in ("kernel", "initramfs"):
        if (path := getattr(config.payload, option)) is not None:
            yield f"--{option}", path, os.R_OK
    for zone in config.memory_zones:
        if zone.file is not None:
            yield "--memory-zone file=", zone.file, os.R_OK | os.W_OK
    for option, devices in _SERVED:  # whoever dies there is connected to again, unless it comes to us
        for device in getattr(config, devices):
            if (socket := device.socket) is not None and getattr(device, "vhost_mode", None) is not VhostMode.SERVER:
                yield f"--{option} socket=", socket, os.W_OK


def check_reopened(wanted: Iterable[tuple[str, Path, int]], identity: Identity, option: str) -> None:
    """The same of what its guest needs again. Raises ConfigError."""
    for what, path, access in wanted:
        if not os.access(path, access):
            verb = "write to" if access & os.W_OK else "read"
            hint = f"`chown {identity.uid}:{identity.gid} {path}`, a mode that lets it, and directories that can be searched"
            reason = (
                f"user {identity.name} could not {verb} {path} ({what}), which is opened again when the guest resets"
            )
            raise ConfigError(option, reason, hint)
