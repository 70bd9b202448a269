"""All tables of a machine, laid out in one block of guest memory."""

from __future__ import annotations

from collections.abc import Mapping

from aiovmm.boot.acpi.mcfg import mcfg
from aiovmm.boot.acpi.sdt import RSDP_SIZE, rsdp, xsdt
from aiovmm.boot.acpi.viot import viot
from aiovmm.boot.x86_64.acpi.config import AcpiConfig
from aiovmm.boot.x86_64.acpi.dsdt import dsdt
from aiovmm.boot.x86_64.acpi.fadt import fadt
from aiovmm.boot.x86_64.acpi.madt import madt
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["AcpiImage", "build"]

_ALIGNMENT = 64
_RSDP_ALIGNMENT = 16  # where a BIOS-area scan looks for it (ACPI 6.4, 5.2.5.1)


@dataclass(frozen=True)
class AcpiImage:
    """`blob` goes to guest-physical address `base`; `tables` are its parts by signature ("RSDP", "XSDT", "FACP", ...)."""

    base: int
    blob: bytes
    rsdp_address: int
    tables: Mapping[str, bytes]
    addresses: Mapping[str, int]

    @property
    def end(self) -> int:
        """The first address after the tables."""
        return self.base + len(self.blob)


def build(config: AcpiConfig, base: int) -> AcpiImage:
    """The tables of `config` at guest-physical address `base`, with the RSDP first.

    Tables are aligned to 64 bytes. Absent parts have no table: no PCI segment, no MCFG; no IOMMU, no VIOT; no nodes, no SRAT
    and no SLIT. Raises
    ConfigError if `base` is not aligned to 16 bytes.
    """
    if base < 0 or base % _RSDP_ALIGNMENT:
        raise ConfigError("acpi.base", f"{base:#x} is not an address aligned to {_RSDP_ALIGNMENT} bytes")
    layout = _Layout(base, RSDP_SIZE)
    layout.add("DSDT", dsdt(config))
    listed = {"FACP": fadt(config, layout.addresses["DSDT"]), "APIC": madt(config)}
    if config.pci_segments:
        listed["MCFG"] = mcfg(config.pci_segments)
    if config.iommu is not None:
        listed["VIOT"] = viot(config.iommu)
    if config.numa:
        from aiovmm.boot.x86_64.acpi.numa import slit, srat

        listed |= {"SRAT": srat(config.numa, config.cpus), "SLIT": slit(config.numa)}
    for signature, table in listed.items():
        layout.add(signature, table)
    layout.add("XSDT", xsdt([layout.addresses[s] for s in listed]))
    return layout.finish(rsdp(layout.addresses["XSDT"]))


class _Layout:
    """Places tables one after the other; the first `head` bytes are kept for the RSDP, which is known last."""

    def __init__(self, base: int, head: int) -> None:
        self._base = base
        self._blob = bytearray(head)
        self._tables: dict[str, bytes] = {}
        self.addresses: dict[str, int] = {}

    def add(self, signature: str, table: bytes) -> None:
        end = self._base + len(self._blob)
        self._blob += bytes(-end % _ALIGNMENT)
        self.addresses[signature] = self._base + len(self._blob)
        self._blob += table
        self._tables[signature] = table

    def finish(self, pointer: bytes) -> AcpiImage:
        self._blob[: len(pointer)] = pointer
        tables = {"RSDP": pointer, **self._tables}
        addresses = {"RSDP": self._base, **self.addresses}
        return AcpiImage(self._base, bytes(self._blob), self._base, tables, addresses)
