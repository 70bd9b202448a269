"""Where a device sits: what every device on the PCI bus is configured with."""

from __future__ import annotations

from aiovmm.config.checks import check_id
from aiovmm.config.kinds import dataclass
from aiovmm.errors import ConfigError

__all__ = ["PlacedConfig"]

_LAST_SLOT = 31


@dataclass(frozen=True, kw_only=True)
class PlacedConfig:
    """`id` names the device (None: a name is made), `pci_segment` is its PCI domain and `pci_device_id` its slot there, 1..31
    (None: the first that is free). With `iommu` it stands behind the virtual IOMMU."""

    id: str | None = None
    pci_segment: int = 0
    pci_device_id: int | None = None
    iommu: bool = False

    def _check_place(self, option: str) -> None:
        if self.id is not None:
            check_id(f"{option}.id", self.id)
        if self.pci_segment < 0:
            raise ConfigError(f"{option}.pci_segment", f"{self.pci_segment} is negative")
        first = 0 if self.pci_segment else 1
        if self.pci_device_id is not None and not first <= self.pci_device_id <= _LAST_SLOT:
            hint = "slot 0 of the first segment has the host bridge" if self.pci_device_id == 0 else ""
            raise ConfigError(f"{option}.pci_device_id", f"{self.pci_device_id} is not in {first}..{_LAST_SLOT}", hint)
