"""What a fork has otherwise than its template: two guests cannot have the same name, files and interfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aiovmm.config import ConsoleConfig, ConsoleMode, DiskConfig, NetConfig, VMConfig
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import replace

__all__ = ["Disks", "fork_changes", "without_places"]

Disks = Literal["overlay"] | Sequence[DiskConfig]

_ITS_OWN = (ConsoleMode.SOCKET, ConsoleMode.FILE, ConsoleMode.TTY)  # which a second guest cannot have as well


def fork_changes(
    config: VMConfig,
    given: Mapping[str, Any],
    vsock_cid: int | None,
    disks: Disks,
    nets: Sequence[NetConfig] | None,
) -> dict[str, Any]:
    """Fields of a fork's VMConfig. Raises ConfigError."""
    changes = without_places(config)
    if config.vsock is not None:
        if vsock_cid is not None and config.vsock.cid != vsock_cid:
            changes["vsock"] = replace(config.vsock, socket=None, cid=vsock_cid)
    elif vsock_cid is not None:
        raise ConfigError("vsock_cid", "the template has no vsock", "say vsock=VsockConfig() in its VMConfig")
    if nets is not None and (isinstance(nets, str) or not isinstance(nets, Sequence)):
        raise ConfigError("nets", f"{nets!r} is no list of NetConfig")
    changes["nets"] = _nets(config) if nets is None else tuple(nets)
    if disks != "overlay" and (isinstance(disks, str) or not isinstance(disks, Sequence)):
        raise ConfigError("disks", f"{disks!r} is neither 'overlay' nor a list of DiskConfig")
    changes["disks"] = config.disks if disks == "overlay" else tuple(disks)
    return {**changes, **given}


def without_places(config: VMConfig) -> dict[str, Any]:
    """Consoles and vsock, which a second guest cannot have at the same files and sockets."""
    changes: dict[str, Any] = {name: _quiet(getattr(config, name)) for name in ("serial", "console")}
    if config.vsock is not None and config.vsock.socket is not None:
        changes["vsock"] = replace(config.vsock, socket=None)
    return changes


def _quiet(console: ConsoleConfig) -> ConsoleConfig:
    if console.mode not in _ITS_OWN:
        return console
    return replace(console, mode=ConsoleMode.NULL, path=None)


def _nets(config: VMConfig) -> tuple[NetConfig, ...]:
    """Interfaces of their own, without the host's address, where all forks would go on with the one guest's connections."""
    for number, net in enumerate(config.nets):
        if net.tap or net.fd:
            what = f"the TAP {net.tap!r}" if net.tap else "its descriptors"
            raise ConfigError(
                f"nets[{number}]", f"{what} can be of one guest only", "give the fork nets=[NetConfig(...)]"
            )
    if not any(net.ip for net in config.nets):
        return config.nets
    return tuple(replace(net, ip=None, mask=None) if net.ip else net for net in config.nets)
