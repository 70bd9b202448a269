"""Option text of the reference monitor (`size=512M,shared=on`) into configuration values.

`keys` has every option's keys with what each is made of; `text` has the grammar. A key with nothing after its `=` is not set, as
in the reference. One that is not known, or that the reference has and this monitor has not, is refused by name, and not ignored
unless its value says what is so here anyway, like `mergeable=off`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiovmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig
from aiovmm.config.cpus import CpusConfig
from aiovmm.config.devices import (
    BalloonConfig,
    DeviceConfig,
    FsConfig,
    GenericVhostUserConfig,
    PmemConfig,
    PvpanicConfig,
    RngConfig,
    RtcConfig,
    VsockConfig,
    WatchdogConfig,
)
from aiovmm.config.disk import DiskConfig
from aiovmm.config.keys import FIRST, KEYS
from aiovmm.config.landlock import LandlockRuleConfig
from aiovmm.config.limits import LimitsConfig
from aiovmm.config.machine import (
    MemoryConfig,
    MemoryZoneConfig,
    NumaConfig,
    PciSegmentConfig,
    PlatformConfig,
)
from aiovmm.config.net import NetConfig
from aiovmm.config.rates import RateLimitGroupConfig
from aiovmm.config.text import (
    split_options,
    to_int,
    to_size,
    unquote,
)
from aiovmm.errors import ConfigError
from aiovmm.runtime.remarks import remark

__all__ = [
    "KEYS",
    "parse_balloon",
    "parse_console",
    "parse_cpus",
    "parse_debug_console",
    "parse_device",
    "parse_disk",
    "parse_fs",
    "parse_generic_vhost_user",
    "parse_landlock_rule",
    "parse_limits",
    "parse_memory",
    "parse_memory_zone",
    "parse_net",
    "parse_numa",
    "parse_pci_segment",
    "parse_platform",
    "parse_pmem",
    "parse_pvpanic",
    "parse_rate_limit_group",
    "parse_rng",
    "parse_rtc",
    "parse_vsock",
    "parse_watchdog",
]


def _convert(option: str, values: dict[str, str | None], *need: str) -> dict[str, Any]:
    keys = KEYS[option]
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys or value is None:
            if value is None or not _asks_for_nothing(option, key, value):
                raise _refusal(option, key, value)
        elif value:
            converted[key] = keys[key](f"{option}.{key}", value)
    for key in need:
        if key not in converted:
            raise ConfigError(f"{option}.{key}", "is missing", f"say {option} {key}=...")
    return converted


def _asks_for_nothing(option: str, key: str, value: str) -> bool:
    from aiovmm.config.reference import asks_for_nothing

    return asks_for_nothing(f"--{option}", key, unquote(value))


def _refusal(option: str, key: str, value: str | None) -> ConfigError:
    """What to say of a part that cannot be taken."""
    keys = KEYS[option]
    if value is None and key in keys:
        return ConfigError(f"{option}.{key}", "has no value", f"say {key}=...")
    if value is None and option in FIRST:
        return ConfigError(
            option, f"{key!r} is no key=value", f"did you mean {FIRST[option]}={key!r}?".replace("'", "")
        )
    if value is None and option in ("serial", "console", "debug-console"):
        hint = f"did you mean file={key}?" if "/" in key else _PLACES_HINT
        return ConfigError(option, f"{key!r} is not a place for a console", hint)
    if not re.fullmatch(r"\w+", key, re.ASCII):
        return ConfigError(option, f"{key!r} is no key", f"known: {', '.join(sorted(keys))}")
    from aiovmm.config.reference import why_not

    if reason := why_not(f"--{option}", key):
        return ConfigError(
            f"{option}.{key}", f"is an option of the reference monitor that aiovmm does not have: {reason}"
        )
    return ConfigError(f"{option}.{key}", "is not known", _nearest(key, keys))


def _nearest(key: str, keys: Iterable[str]) -> str:
    from difflib import get_close_matches  # for who has mistyped

    near = get_close_matches(key, keys, 1)
    return f"did you mean {near[0]}=?" if near else f"known: {', '.join(sorted(keys))}"


def parse_cpus(text: str) -> CpusConfig:
    """`2`, or `boot=2,max=4,...`."""
    if text and "=" not in text:
        return CpusConfig(boot=to_int("cpus", text))
    return CpusConfig(**_convert("cpus", split_options("cpus", text)))


def parse_memory(text: str) -> MemoryConfig:
    """`512M`, or `size=512M,shared=on,...`."""
    if text and "=" not in text:
        return MemoryConfig(size=to_size("memory", text))
    values = _convert("memory", split_options("memory", text))
    if values.pop("file", None) is not None:
        remark("memory.file: has no effect, as in the reference: memory-zone file= has one")
    return MemoryConfig(**values)


def parse_memory_zone(text: str) -> MemoryZoneConfig:
    """`id=,size=,file=,...`."""
    return MemoryZoneConfig(**_convert("memory-zone", split_options("memory-zone", text), "id"))


def parse_numa(text: str) -> NumaConfig:
    """`guest_numa_id=,cpus=,memory_zones=,...`."""
    return NumaConfig(**_convert("numa", split_options("numa", text), "guest_numa_id"))


def parse_console(option: str, text: str) -> ConsoleConfig:
    """`tty`, `pty`, `null`, `off`, `socket=PATH` or `file=PATH`; `option` is "serial" or "console", and the latter takes the
    keys of a device beside it."""
    mode, path, given = _console_place(option, text)
    try:
        return ConsoleConfig(mode, path, **given)
    except ConfigError as exc:
        raise ConfigError(exc.option.replace("console", option, 1), exc.reason, exc.hint) from None


def _console_place(option: str, text: str) -> tuple[ConsoleMode, Path | None, dict[str, Any]]:
    """The place, and what else is said."""
    values = split_options(option, text)
    words = [key for key in values if key in _PLACES]
    for word in words:
        if values.pop(word) is not None:
            raise ConfigError(option, f"{word} takes no value", f"say {option} {word}")
    if unknown := [key for key, value in values.items() if value is None and key not in KEYS[option]]:
        raise ConfigError(option, f"{unknown[0]!r} is not a place for a console", _PLACES_HINT)
    given = _convert(option, values)
    paths: dict[str, Path] = {key: given.pop(key) for key in ("file", "socket") if key in given}
    modes = [*words, *paths]
    if len(modes) != 1:
        reason = (
            f"{' and '.join(modes)} are more places than one" if modes else f"{text!r} is not a place for a console"
        )
        raise ConfigError(option, reason, _PLACES_HINT)
    return ConsoleMode(modes[0]), next(iter(paths.values()), None), given


def parse_debug_console(text: str) -> DebugConsoleConfig:
    """`off`, `tty`, `pty`, `null`, `file=PATH` or `socket=PATH`, and `iobase=0xe9`, `filter=on`."""
    mode, path, given = _console_place("debug-console", text)
    return DebugConsoleConfig(mode, path, **given)


_PLACES_HINT = "tty, pty, socket=PATH, file=PATH, null or off"
_PLACES = tuple(mode.value for mode in ConsoleMode if mode not in (ConsoleMode.SOCKET, ConsoleMode.FILE))


def parse_rng(text: str) -> RngConfig:
    """`src=/dev/urandom`."""
    return RngConfig(**_convert("rng", split_options("rng", text)))


def parse_disk(text: str) -> DiskConfig:
    """`path=,readonly=,direct=,...`."""
    values = _convert("disk", split_options("disk", text))
    values.pop("_disable_aio", None)  # Linux AIO is never used
    return DiskConfig(io_uring=not values.pop("_disable_io_uring", False), **values)


def parse_net(text: str) -> NetConfig:
    """`tap=,fd=,ip=,mask=,...`; an empty text has a TAP made."""
    return NetConfig(**_convert("net", split_options("net", text)))


def parse_vsock(text: str) -> VsockConfig:
    """`cid=,socket=`."""
    return VsockConfig(**_convert("vsock", split_options("vsock", text), "cid"))


def parse_pmem(text: str) -> PmemConfig:
    """`file=,size=,discard_writes=`."""
    return PmemConfig(**_convert("pmem", split_options("pmem", text), "file"))


def parse_fs(text: str) -> FsConfig:
    """`tag=,socket=,num_queues=,queue_size=`."""
    return FsConfig(**_convert("fs", split_options("fs", text), "tag", "socket"))


def parse_device(text: str) -> DeviceConfig:
    """`path=/sys/bus/pci/devices/...` or `fd=`."""
    return DeviceConfig(**_convert("device", split_options("device", text)))


def parse_balloon(text: str) -> BalloonConfig:
    """`size=,deflate_on_oom=,free_page_reporting=`."""
    return BalloonConfig(**_convert("balloon", split_options("balloon", text)))


def parse_watchdog(text: str) -> WatchdogConfig:
    """`action=reset|event`; an empty text is a watchdog that resets."""
    return WatchdogConfig(**_convert("watchdog", split_options("watchdog", text)))


def parse_pvpanic(text: str) -> PvpanicConfig:
    """Where it sits."""
    return PvpanicConfig(**_convert("pvpanic", split_options("pvpanic", text)))


def parse_rtc(text: str) -> RtcConfig:
    """Where it sits."""
    return RtcConfig(**_convert("rtc", split_options("rtc", text)))


def parse_generic_vhost_user(text: str) -> GenericVhostUserConfig:
    """`device_type=,socket=,queue_sizes=[]`; `virtio_id` is an older name for the first."""
    option = "generic-vhost-user"
    values = split_options(option, text)
    kind = values.pop("virtio_id", None)
    if kind and not values.get("device_type"):
        values["device_type"] = kind
    return GenericVhostUserConfig(**_convert(option, values, "device_type", "socket", "queue_sizes"))


def parse_rate_limit_group(text: str) -> RateLimitGroupConfig:
    """`id=,bw_size=,ops_size=,...`."""
    return RateLimitGroupConfig(**_convert("rate-limit-group", split_options("rate-limit-group", text), "id"))


def parse_landlock_rule(text: str) -> LandlockRuleConfig:
    """`path=,access=`."""
    return LandlockRuleConfig(**_convert("landlock-rules", split_options("landlock-rules", text), "path", "access"))


def parse_pci_segment(text: str) -> PciSegmentConfig:
    """`pci_segment=,mmio32_aperture_weight=,mmio64_aperture_weight=`."""
    values = _convert("pci-segment", split_options("pci-segment", text))
    return PciSegmentConfig(**{"pci_segment": 0, **values})


def parse_limits(text: str) -> LimitsConfig:
    """`exits=,lifetime=,idle=`."""
    return LimitsConfig(**_convert("limits", split_options("limits", text)))


def parse_platform(text: str) -> PlatformConfig:
    """`num_pci_segments=,iommu_segments=,system_uuid=,...`."""
    values = _convert("platform", split_options("platform", text))
    return PlatformConfig(**{"iommufd": "iommufd_fd" in values, **values})
