"""Every option's keys, by the reference monitor's names, with what each is made of. `options` makes configurations of them."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from aiovmm.config.cpus import CoreScheduling, TopologyConfig
from aiovmm.config.devices import WatchdogAction
from aiovmm.config.disk import ImageType, LockGranularity
from aiovmm.config.machine import HotplugMethod
from aiovmm.config.net import VhostMode
from aiovmm.config.text import (
    Converter,
    to_bool,
    to_int,
    to_ints,
    to_pairs,
    to_path,
    to_seconds,
    to_size,
    to_text,
    to_words,
    unquote,
)
from aiovmm.errors import ConfigError

__all__ = ["FIRST", "KEYS"]

E = TypeVar("E", bound=Enum)


def _topology(option: str, text: str) -> TopologyConfig:
    counts = [to_int(option, part) for part in unquote(text).split(":")]
    if len(counts) != 4:
        raise ConfigError(
            option, f"{text!r} is no topology", "threads per core:cores per die:dies per package:packages"
        )
    return TopologyConfig(*counts)


def _choice(option: str, text: str, kind: type[E]) -> E:
    try:
        return kind(unquote(text).lower())
    except ValueError:
        raise ConfigError(option, f"is {', '.join(c.value for c in kind)}, and not {text!r}") from None


def _image_type(option: str, text: str) -> ImageType:
    return _choice(option, text, ImageType)


def _action(option: str, text: str) -> WatchdogAction:
    return _choice(option, text, WatchdogAction)


def _device_type(option: str, text: str) -> int:
    """A number, or the name that the reference has for it."""
    word = unquote(text)
    if word[:1].isdecimal():
        return to_int(option, text)
    from aiovmm.config.device_types import DEVICE_TYPES

    if word not in DEVICE_TYPES:
        raise ConfigError(option, f"{text!r} is no kind of virtio device", f"a number, or {', '.join(DEVICE_TYPES)}")
    return DEVICE_TYPES[word]


def _hotplug_method(option: str, text: str) -> HotplugMethod:
    return _choice(option, text, HotplugMethod)


def _distances(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """`[1@20,2@[25]]`: nodes, each with how far it is."""
    pairs = to_pairs(option, text)
    for node, distances in pairs:
        if len(distances) != 1:
            raise ConfigError(option, f"node {node} has {len(distances)} distances", "like [1@20,2@25]")
    return tuple((node, distances[0]) for node, distances in pairs)


def _core_scheduling(option: str, text: str) -> CoreScheduling:
    return _choice(option, text, CoreScheduling)


def _vhost_mode(option: str, text: str) -> VhostMode:
    return _choice(option, text, VhostMode)


def _lock(option: str, text: str) -> LockGranularity:
    return _choice(option, text, LockGranularity)


_PLACE: dict[str, Converter] = {"id": to_text, "pci_segment": to_int, "pci_device_id": to_int, "iommu": to_bool}
_QUEUES: dict[str, Converter] = {"num_queues": to_int, "queue_size": to_int}
_RATES: dict[str, Converter] = {
    "bw_size": to_size,
    "bw_one_time_burst": to_size,
    "bw_refill_time": to_int,
    "ops_size": to_int,
    "ops_one_time_burst": to_int,
    "ops_refill_time": to_int,
}

KEYS: dict[str, dict[str, Converter]] = {
    "cpus": {
        "boot": to_int,
        "max": to_int,
        "topology": _topology,
        "max_phys_bits": to_int,
        "affinity": to_pairs,
        "vcpu_nice": to_int,
        "nested": to_bool,
        "features": to_words,
        "core_scheduling": _core_scheduling,
        "kvm_hyperv": to_bool,
    },
    "memory": {
        "size": to_size,
        "shared": to_bool,
        "hugepages": to_bool,
        "prefault": to_bool,
        "thp": to_bool,
        "mergeable": to_bool,
        "hotplug_method": _hotplug_method,
        "hotplug_size": to_size,
        "hotplugged_size": to_size,
        "hugepage_size": to_size,
        "reserve": to_bool,
        "file": to_path,
    },
    "memory-zone": {
        "id": to_text,
        "size": to_size,
        "file": to_path,
        "shared": to_bool,
        "hugepages": to_bool,
        "hugepage_size": to_size,
        "host_numa_node": to_int,
        "hotplug_size": to_size,
        "hotplugged_size": to_size,
        "prefault": to_bool,
        "reserve": to_bool,
        "mergeable": to_bool,
    },
    "numa": {
        "guest_numa_id": to_int,
        "cpus": to_ints,
        "distances": _distances,
        "memory_zones": to_words,
        "pci_segments": to_ints,
        "device_id": to_text,
    },
    "platform": {
        "num_pci_segments": to_int,
        "iommu_segments": to_ints,
        "serial_number": to_text,
        "uuid": to_text,
        "oem_strings": to_words,
        "system_manufacturer": to_text,
        "system_product_name": to_text,
        "system_version": to_text,
        "system_serial_number": to_text,
        "system_uuid": to_text,
        "system_sku_number": to_text,
        "system_family": to_text,
        "chassis_asset_tag": to_text,
        "iommu_address_width": to_int,
        "iommufd": to_bool,
        "iommufd_fd": to_int,
        "vfio_p2p_dma": to_bool,
    },
    "pci-segment": {"pci_segment": to_int, "mmio32_aperture_weight": to_int, "mmio64_aperture_weight": to_int},
    "serial": {"file": to_path, "socket": to_path, "filter": to_bool},
    "console": {"file": to_path, "socket": to_path, "filter": to_bool, **_PLACE},
    "rng": {"src": to_path, **_PLACE},
    "disk": {
        "path": to_path,
        "readonly": to_bool,
        "direct": to_bool,
        **_QUEUES,
        "serial": to_text,
        "image_type": _image_type,
        "overlay": to_path,
        "backing_files": to_bool,
        "sparse": to_bool,
        "lock_granularity": _lock,
        "_disable_io_uring": to_bool,
        "_disable_aio": to_bool,
        "vhost_user": to_bool,
        "socket": to_path,
        **_RATES,
        "rate_limit_group": to_text,
        "queue_affinity": to_pairs,
        **_PLACE,
    },
    "net": {
        "tap": to_text,
        "fd": to_ints,
        "ip": to_text,
        "mask": to_text,
        "mac": to_text,
        "host_mac": to_text,
        "anti_spoof": to_bool,
        "guest_ip": to_words,
        "mtu": to_int,
        "offload_csum": to_bool,
        "offload_tso": to_bool,
        "offload_ufo": to_bool,
        **_QUEUES,
        "passt": to_bool,
        "vhost_user": to_bool,
        "vhost_mode": _vhost_mode,
        "socket": to_path,
        **_RATES,
        **_PLACE,
    },
    "fs": {"tag": to_text, "socket": to_path, **_QUEUES, **_PLACE},
    "pmem": {"file": to_path, "size": to_size, "discard_writes": to_bool, **_PLACE},
    "device": {"path": to_path, "fd": to_int, "x_exclude_mmap_bars": to_ints, **_PLACE},
    "vsock": {"cid": to_int, "socket": to_path, **_PLACE},
    "balloon": {"size": to_size, "deflate_on_oom": to_bool, "free_page_reporting": to_bool, **_PLACE},
    "rate-limit-group": {"id": to_text, **_RATES},
    "landlock-rules": {"path": to_path, "access": to_text},
    "watchdog": {"action": _action, **_PLACE},
    "pvpanic": {**_PLACE},
    "rtc": {**_PLACE},
    "generic-vhost-user": {
        "device_type": _device_type,
        "virtio_id": _device_type,
        "socket": to_path,
        "queue_sizes": to_ints,
        **_PLACE,
    },
    "debug-console": {"file": to_path, "socket": to_path, "iobase": to_int, "filter": to_bool},
    "limits": {"exits": to_int, "lifetime": to_seconds, "idle": to_seconds},
}

FIRST = {
    "disk": "path",
    "net": "tap",
    "fs": "tag",
    "pmem": "file",
    "device": "path",
    "rng": "src",
    "vsock": "cid",
    "balloon": "size",
}
"""The key that a lone word after the option is probably meant for."""
