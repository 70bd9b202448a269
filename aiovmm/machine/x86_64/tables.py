"""What firmware would tell a guest of this machine: ACPI, and the MP table for those that do without."""

from __future__ import annotations

import os
from collections.abc import Sequence

from aiovmm.boot.pci import IntxWire
from aiovmm.boot.x86_64 import acpi, layout
from aiovmm.boot.x86_64.cpuid import apic_id
from aiovmm.config import VMConfig
from aiovmm.devices.ioapic import pin_of_slot
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.pci import describe_segments
from aiovmm.machine.x86_64.legacy import GED_PIN, LegacyDevices
from aiovmm.machine.x86_64.vcpus import topology_of
from aiovmm.memory import GuestMemory
from aiovmm.pci.segment import SLOTS, PciSegment
from aiovmm.runtime.prepared import Prepared

__all__ = ["describe", "tables_are_made", "write_generation", "write_tables"]


def describe(
    config: VMConfig,
    legacy: LegacyDevices,
    ports: acpi.AcpiPorts,
    segments: Sequence[PciSegment],
    iommu: MachineIommu | None,
    end_of_ram: int,
) -> acpi.AcpiConfig:
    """The machine with all that is plugged into it, and places for what may come after `end_of_ram`."""
    cpus = config.cpus
    topology = topology_of(cpus)
    apic_ids = (apic_id(topology, i) for i in range(cpus.max or cpus.boot))
    return acpi.AcpiConfig(
        cpus=tuple(acpi.Cpu(id_, enabled=i < cpus.boot) for i, id_ in enumerate(apic_ids)),
        pci_segments=describe_segments(segments),
        serial_ports=(acpi.SerialPort(),) if legacy.serial is not None else (),
        modules=_modules(config, end_of_ram) if ports.modules is not None else (),
        ports=ports,
        ged_gsi=GED_PIN,
        slot_wires=_SLOT_WIRES if ports.slots is not None else (),
        vm_generation=layout.VM_GENERATION,
        iommu=iommu.describe() if iommu is not None else None,
    )


_SLOT_WIRES = tuple(IntxWire(slot, pin_of_slot(slot)) for slot in range(SLOTS))


def _modules(config: VMConfig, end_of_ram: int) -> tuple[acpi.MemoryModule, ...]:
    from aiovmm.machine.hotplug.places import modules  # for who has some

    return tuple(acpi.MemoryModule(*place) for place in modules(config.memory, end_of_ram))


def tables_are_made(machine: acpi.AcpiConfig) -> bool:
    """Whether `write_tables` has only to copy them."""
    return _tables.find(machine) is not None


def write_tables(memory: GuestMemory, machine: acpi.AcpiConfig) -> None:
    """All of them, to where they are looked for. It may be called in a thread."""
    from aiovmm.boot.x86_64.mptable import mp_table

    tables, mp = _tables.get(machine, lambda: (acpi.build(machine, layout.RSDP), mp_table(machine, layout.MP_TABLE)))
    memory.write(tables.base, tables.blob)
    memory.write(layout.MP_TABLE, mp)
    write_generation(memory)


def write_generation(memory: GuestMemory) -> None:
    """It is a machine that there has not been before."""
    memory.write(layout.VM_GENERATION, os.urandom(16))


_tables: Prepared[tuple[acpi.AcpiImage, bytes]] = Prepared(64)
