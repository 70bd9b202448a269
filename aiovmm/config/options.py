"""Option text of the reference monitor (`size=512M,shared=on`) into configuration values.

An option is a comma-separated list of `key=value`; a value may hold commas inside double quotes or `[ ]`. Booleans are
on/off/true/false, sizes take the suffixes K, M, G, T (powers of 1024). A key that is not known, or known to the reference
but not there yet, is refused by name, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiovmm.config.devices import DeviceConfig, DiskConfig, FsConfig, NetConfig, PmemConfig, RngConfig, VsockConfig
from aiovmm.config.machine import ConsoleConfig, ConsoleMode, CpusConfig, MemoryConfig, PlatformConfig, TopologyConfig
from aiovmm.errors import ConfigError

__all__ = [
    "parse_bool",
    "parse_console",
    "parse_cpus",
    "parse_device",
    "parse_disk",
    "parse_fs",
    "parse_memory",
    "parse_net",
    "parse_platform",
    "parse_pmem",
    "parse_rng",
    "parse_size",
    "parse_vsock",
    "split_options",
]

_SUFFIX = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TOPLEVEL_COMMA = r',(?=(?:[^"\[\]]|"[^"]*"|\[[^\]]*\])*$)'

# Keys of the reference that this monitor does not have; the text tells the user why, or what to do instead.
_RATE_LIMIT = frozenset(
    {"bw_size", "bw_one_time_burst", "bw_refill_time", "ops_size", "ops_one_time_burst", "ops_refill_time"}
)
_ABSENT: dict[str, frozenset[str]] = {
    "cpus": frozenset({"kvm_hyperv", "affinity"}),
    "memory": frozenset({"mergeable", "hugepage_size", "hotplug_method", "hotplug_size", "hotplugged_size"}),
    "disk": frozenset({*_RATE_LIMIT, "rate_limit_group", "queue_affinity", "backing_files"}),
    "net": frozenset({*_RATE_LIMIT, "vhost_mode"}),
    "device": frozenset({"x_nv_gpudirect_clique"}),
    "platform": frozenset({"serial_number", "uuid", "oem_strings", "tdx", "sev_snp", "iommu_address_width"}),
}


def parse_size(option: str, text: str) -> int:
    """`512M` in bytes. Raises ConfigError."""
    match = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)([KMGTkmgt]?)", text)
    if match is None:
        raise ConfigError(option, f"{text!r} is not a size", "like 512M or 2G")
    return int(match[1], 0) * _SUFFIX[match[2].upper()]


def parse_bool(option: str, text: str) -> bool:
    """on/off/true/false. Raises ConfigError."""
    if text.lower() in ("on", "true"):
        return True
    if text.lower() in ("off", "false"):
        return False
    raise ConfigError(option, f"{text!r} is neither on nor off")


def _int(option: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError(option, f"{text!r} is not a number") from None


def _text(option: str, text: str) -> str:
    if not text:
        raise ConfigError(option, "is empty")
    return text


def _path(option: str, text: str) -> Path:
    return Path(_text(option, text))


def _int_list(option: str, text: str) -> tuple[int, ...]:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return tuple(_int(option, part.strip()) for part in inner.split(","))


def _maybe_empty(_option: str, text: str) -> str | None:
    return text or None


Converter = Callable[[str, str], Any]
_PLACE: dict[str, Converter] = {"id": _text, "pci_segment": _int, "iommu": parse_bool}


def split_options(option: str, text: str) -> dict[str, str]:
    """`a=1,b=[2,3],c` into {"a": "1", "b": "[2,3]", "c": ""}. Raises ConfigError for a repeated or nameless key."""
    values: dict[str, str] = {}
    for part in re.split(_TOPLEVEL_COMMA, text):
        key, _, value = part.partition("=")
        if not key:
            raise ConfigError(option, f"{text!r} has a part without a name", f"like {option} key=value,key=value")
        if key in values:
            raise ConfigError(f"{option}.{key}", "is given twice")
        quoted = len(value) >= 2 and value[0] == value[-1] == '"'
        values[key] = value[1:-1] if quoted else value
    return values


def _convert(option: str, text: str, keys: Mapping[str, Converter]) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, value in split_options(option, text).items():
        if key not in keys:
            if key in _ABSENT.get(option, frozenset()):
                raise ConfigError(f"{option}.{key}", "is an option of the reference monitor that aiovmm does not have")
            raise ConfigError(f"{option}.{key}", "is not known", f"known: {', '.join(sorted(keys))}")
        converted[key] = keys[key](f"{option}.{key}", value)
    return converted


def _need(option: str, values: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        if key not in values:
            raise ConfigError(f"{option}.{key}", "is missing", f"say {option} {key}=...")
    return values


def parse_cpus(text: str) -> CpusConfig:
    """`2`, or `boot=2,max=4`."""
    if "=" not in text:
        return CpusConfig(boot=_int("cpus", text))
    return CpusConfig(**_convert("cpus", text, _CPUS))


def _topology(option: str, text: str) -> TopologyConfig:
    """`threads:cores:dies:packages`."""
    counts = [_int(option, part) for part in text.split(":")]
    if len(counts) != 4:
        raise ConfigError(
            option, f"{text!r} is no topology", "threads per core:cores per die:dies per package:packages"
        )
    return TopologyConfig(*counts)


def _words(_option: str, text: str) -> tuple[str, ...]:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return tuple(word.strip() for word in inner.split(",") if word.strip())


_CPUS: dict[str, Converter] = {
    "boot": _int,
    "max": _int,
    "topology": _topology,
    "max_phys_bits": _int,
    "nested": parse_bool,
    "features": _words,
}


def parse_memory(text: str) -> MemoryConfig:
    """`512M`, or `size=512M,shared=on,hugepages=off,prefault=off,thp=on`."""
    if "=" not in text:
        return MemoryConfig(size=parse_size("memory", text))
    switches = ("shared", "hugepages", "prefault", "thp")
    keys: dict[str, Converter] = {"size": parse_size, **dict.fromkeys(switches, parse_bool)}
    return MemoryConfig(**_convert("memory", text, keys))


def parse_console(option: str, text: str) -> ConsoleConfig:
    """`tty`, `pty`, `null`, `off`, `socket=PATH` or `file=PATH`; `option` is "serial" or "console"."""
    mode, _, path = text.partition("=")
    try:
        chosen = ConsoleMode(mode)
    except ValueError:
        hint = "tty, pty, socket=PATH, file=PATH, null or off"
        raise ConfigError(option, f"{text!r} is not a place for a console", hint) from None
    try:
        return ConsoleConfig(mode=chosen, path=Path(path) if path else None)
    except ConfigError as exc:
        raise ConfigError(option, exc.reason, exc.hint) from None


def parse_rng(text: str) -> RngConfig:
    """`src=/dev/urandom`."""
    return RngConfig(**_convert("rng", text, {"src": _path, **_PLACE}))


_DISK: dict[str, Converter] = {
    "path": _path,
    "readonly": parse_bool,
    "direct": parse_bool,
    "num_queues": _int,
    "queue_size": _int,
    "serial": _text,
    "vhost_user": parse_bool,
    "socket": _path,
    **_PLACE,
}


def parse_disk(text: str) -> DiskConfig:
    """`path=,readonly=,direct=,num_queues=,queue_size=,serial=,vhost_user=,socket=`."""
    return DiskConfig(**_convert("disk", text, _DISK))


_NET: dict[str, Converter] = {
    "tap": _maybe_empty,
    "fd": _int_list,
    "ip": _text,
    "mask": _text,
    "mac": _text,
    "host_mac": _text,
    "mtu": _int,
    "offload_csum": parse_bool,
    "offload_tso": parse_bool,
    "offload_ufo": parse_bool,
    "num_queues": _int,
    "queue_size": _int,
    "passt": parse_bool,
    "vhost_user": parse_bool,
    "socket": _path,
    **_PLACE,
}


def parse_net(text: str) -> NetConfig:
    """`tap=,fd=,ip=,mask=,mac=,host_mac=,mtu=,offload_csum=,offload_tso=,offload_ufo=,num_queues=,queue_size=,passt=,
    vhost_user=,socket=`; an empty `tap=` has one made."""
    return NetConfig(**_convert("net", text, _NET))


def parse_vsock(text: str) -> VsockConfig:
    """`cid=,socket=`."""
    return VsockConfig(**_need("vsock", _convert("vsock", text, {"cid": _int, "socket": _path, **_PLACE}), "cid"))


def parse_pmem(text: str) -> PmemConfig:
    """`file=,size=,discard_writes=`."""
    keys = {"file": _path, "size": parse_size, "discard_writes": parse_bool, **_PLACE}
    return PmemConfig(**_need("pmem", _convert("pmem", text, keys), "file"))


def parse_fs(text: str) -> FsConfig:
    """`tag=,socket=,num_queues=,queue_size=`."""
    keys = {"tag": _text, "socket": _path, "num_queues": _int, "queue_size": _int, **_PLACE}
    return FsConfig(**_need("fs", _convert("fs", text, keys), "tag", "socket"))


def parse_device(text: str) -> DeviceConfig:
    """`path=/sys/bus/pci/devices/...`."""
    return DeviceConfig(**_need("device", _convert("device", text, {"path": _path, **_PLACE}), "path"))


def parse_platform(text: str) -> PlatformConfig:
    """`num_pci_segments=,iommu_segments=`."""
    return PlatformConfig(**_convert("platform", text, {"num_pci_segments": _int, "iommu_segments": _int_list}))
