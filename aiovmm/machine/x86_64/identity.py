"""Who the machine is, by SMBIOS: for guests of which anything of that is said."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.x86_64 import layout
from aiovmm.boot.x86_64.smbios import SmbiosMachine, smbios
from aiovmm.config import PlatformConfig, VMConfig
from aiovmm.config.machine import bare_uuid
from aiovmm.machine.x86_64.vcpus import topology_of
from aiovmm.memory import GuestMemory

__all__ = ["write_smbios"]


def write_smbios(memory: GuestMemory, config: VMConfig, ram: Sequence[tuple[int, int]]) -> None:
    """To where it is looked for. Raises ConfigError for texts that are too long together. It may be called in a thread."""
    machine = _described(config.platform, config, ram)
    memory.write(layout.SMBIOS, smbios(machine, layout.SMBIOS, layout.SMBIOS_END))


def _described(platform: PlatformConfig, config: VMConfig, ram: Sequence[tuple[int, int]]) -> SmbiosMachine:
    p, topology = platform, topology_of(config.cpus)
    uuid = p.system_uuid or p.uuid
    return SmbiosMachine(
        manufacturer=_bytes(p.system_manufacturer),
        product_name=_bytes(p.system_product_name),
        version=_bytes(p.system_version),
        serial_number=_bytes(p.system_serial_number or p.serial_number),
        uuid=None if uuid is None else bytes.fromhex(bare_uuid(uuid).replace("-", "")),
        sku_number=_bytes(p.system_sku_number),
        family=_bytes(p.system_family),
        asset_tag=_bytes(p.chassis_asset_tag),
        oem_strings=tuple(text.encode(errors="surrogateescape") for text in p.oem_strings),
        packages=topology.sockets,
        cores=topology.dies * topology.cores,
        threads=topology.logical,
        ram=tuple(ram),
    )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="surrogateescape")
