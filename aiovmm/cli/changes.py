"""What other commands have an `aiovmm run` change of its guest while it runs: devices, processors, memory (see control.py).

Options are the caller's text: what is wrong with it is said to the caller, and relative paths are those of its directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiovmm.config import DeviceConfig, NetConfig, PlacedConfig
from aiovmm.config import options as parse
from aiovmm.errors import ConfigError, HostError, UsageError
from aiovmm.runtime.dataclass import field_types, replace
from aiovmm.vm import VM

if TYPE_CHECKING:
    from aiovmm.cli.confinement import Confinement

__all__ = ["DEVICES", "JOBS"]

DEVICES: Mapping[str, Callable[[str], PlacedConfig]] = {
    "disk": parse.parse_disk,
    "net": parse.parse_net,
    "fs": parse.parse_fs,
    "pmem": parse.parse_pmem,
    "vsock": parse.parse_vsock,
    "rng": parse.parse_rng,
    "balloon": parse.parse_balloon,
    "watchdog": parse.parse_watchdog,
    "rtc": parse.parse_rtc,
    "console": partial(parse.parse_console, "console"),
    "generic-vhost-user": parse.parse_generic_vhost_user,
    "device": parse.parse_device,
}
"""What `aiovmm add` takes, by the names of `aiovmm run`'s options."""

_REFUSED = (errno.EPERM, errno.EACCES)


async def _add(vm: VM, asked: Mapping[str, Any], confinement: Confinement) -> dict[str, Any]:
    option, text, here = _text(asked, "option"), _text(asked, "text"), _text(asked, "cwd")
    if option not in DEVICES:
        raise UsageError(f"{option!r} is no device; there are {', '.join(DEVICES)}")
    config = _from(Path(here), DEVICES[option](text))
    if isinstance(config, NetConfig) and config.fd:
        raise _anothers_descriptor("net.fd", "name an interface by tap=")
    if isinstance(config, DeviceConfig) and config.fd is not None:
        raise _anothers_descriptor("device.fd", "name a device by path=")
    try:
        id_ = await vm.add(config, timeout=_seconds(asked))
        return {"id": id_, "place": vm.console.place if option == "console" else ""}
    except OSError as exc:
        if exc.errno in _REFUSED and (why := confinement.why_refused()):
            raise HostError(f"adding a {option}", exc.errno or 0, f"{exc}; {why}") from exc
        raise


def _anothers_descriptor(option: str, instead: str) -> ConfigError:
    reason = "is a descriptor of another process, which the guest's monitor has not"
    return ConfigError(option, reason, f"start the guest with it, or {instead}")


async def _remove(vm: VM, asked: Mapping[str, Any], _confinement: Confinement) -> dict[str, Any]:
    id_ = _text(asked, "id")
    try:
        await vm.remove(id_, timeout=_seconds(asked), force=asked.get("force") is True)
    except KeyError as exc:
        raise UsageError(str(exc.args[0])) from exc
    return {}


async def _resize(vm: VM, asked: Mapping[str, Any], _confinement: Confinement) -> dict[str, Any]:
    cpus, memory, zone = asked.get("cpus"), asked.get("memory"), asked.get("zone")
    if not isinstance(cpus, int | None) or not isinstance(memory, int | None):
        raise UsageError("cpus and memory are whole numbers")
    if not isinstance(zone, str | None):
        raise UsageError("zone is a name")
    await vm.resize(cpus=cpus, memory=memory, zone=zone, timeout=_seconds(asked))
    return {}


JOBS = {"add": _add, "remove": _remove, "resize": _resize}
"""By the name that a request has for each. They raise AiovmmError."""


def _text(asked: Mapping[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{key} is missing, or no text")
    return value


def _seconds(asked: Mapping[str, Any]) -> float:
    value = asked.get("timeout")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("timeout is missing, or no number of seconds")
    try:
        return float(value)
    except OverflowError:
        raise UsageError("timeout is longer than any clock goes") from None


def _from(directory: Path, config: PlacedConfig) -> PlacedConfig:
    """The same with the paths that the caller meant."""
    if isinstance(config, DeviceConfig) and _is_address(config.path):
        return config
    paths = {name: path for name in field_types(config) if isinstance(path := getattr(config, name), Path)}
    changes: dict[str, Any] = {name: Path(os.path.join(directory, path)) for name, path in paths.items()}
    return replace(config, **changes) if changes else config


def _is_address(path: Path | None) -> bool:
    """Of PCI's, and not in the caller's directory."""
    return path is not None and len(path.parts) == 1 and ":" in path.name
