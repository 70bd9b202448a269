"""pvpanic as a function on PCI: QEMU's device, by its identity."""

from __future__ import annotations

from functools import partial

from aiovmm.config import PvpanicConfig
from aiovmm.devices.pvpanic import CRASH_LOADED, Pvpanic
from aiovmm.machine.owner import MachineOwner
from aiovmm.pci.bar import Bar, BarKind
from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.function import BarRegion, PciFunction
from aiovmm.pci.root import PciRoot
from aiovmm.runtime.plain import Fields, State

__all__ = ["PvpanicFunction", "plug_pvpanic"]

_IDENTITY = Identity(vendor=0x1B36, device=0x0011, class_code=0x088000, revision=1)
_BAR_SIZE = 16
_PANICKED = "reported by pvpanic"
_CRASHED = "reported by pvpanic; its crash kernel takes over"


class PvpanicFunction(PciFunction):
    """The register at the start of BAR 0."""

    def __init__(self, register: Pvpanic) -> None:
        region = BarRegion(0, 0, register.SIZE, register, "pvpanic")
        super().__init__("pvpanic", ConfigSpace(_IDENTITY), [Bar(0, BarKind.MEM32, _BAR_SIZE)], [region])
        self.register = register

    def save(self) -> State:
        """With what was told."""
        return {**super().save(), "register": self.register.save()}

    async def load(self, state: State) -> None:
        """Raises SnapshotError."""
        fields = Fields(state, self.name)
        config, register = fields.state("config"), fields.state("register")
        fields.end()
        self.config.load(config)
        self.register.load(register)


def plug_pvpanic(root: PciRoot, config: PvpanicConfig, owner: MachineOwner) -> None:
    """Into its slot, or the first that is free. Raises UsageError."""
    root.add(PvpanicFunction(Pvpanic(partial(_tell, owner))), config.pci_segment, config.pci_device_id)


def _tell(owner: MachineOwner, event: int) -> None:
    crashed = event == CRASH_LOADED
    owner.guest_panicked(_CRASHED if crashed else _PANICKED, goes_on=crashed)
