"""A PCI Express host bridge in the DSDT (PCI Firmware Specification 3.3, 4.1 and 4.5; ACPI 6.4, 6.2.11, 6.2.13 and 6.5)."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.acpi import aml
from aiovmm.boot.pci import IntxWire, PciSegment
from aiovmm.boot.x86_64.acpi.dsdt_slots import slots

__all__ = ["Control", "bridge_name", "host_bridge", "slot_interrupts"]

_SLOT_INTERRUPTS = "SIRQ"

_PCI_HOST_BRIDGE = "33db4d5b-1ff7-401c-9657-7441c03dd766"  # the interface that _OSC is asked for
_CONFIG_ADDRESS, _CONFIG_PORTS = 0xCF8, 8


class Control:
    """What a guest may take over through `_OSC` (PCI Firmware 3.3, 4.5.1)."""

    PCIE_HOTPLUG = 1 << 0
    PCIE_PME = 1 << 2
    PCIE_AER = 1 << 3
    PCIE_CAPABILITY = 1 << 4
    PCIE_LTR = 1 << 5


GRANTED = Control.PCIE_HOTPLUG | Control.PCIE_PME | Control.PCIE_AER | Control.PCIE_CAPABILITY | Control.PCIE_LTR


class _Status:
    """Errors in the first dword that `_OSC` returns (ACPI 6.4, 6.2.11)."""

    UNRECOGNIZED_UUID = 1 << 2
    UNRECOGNIZED_REVISION = 1 << 3
    CAPABILITIES_MASKED = 1 << 4


def bridge_name(segment: PciSegment) -> str:
    """PC00 to PCFF."""
    return f"PC{segment.segment:02X}"


def slot_interrupts(wires: Sequence[IntxWire]) -> bytes:
    """What the _PRT of each bridge gives whose slots are for hotplug."""
    return aml.name(_SLOT_INTERRUPTS, _routing(wires))


def host_bridge(
    segment: PciSegment, slot_registers: int | None = None, node: int | None = None, *, shared_routing: bool = False
) -> bytes:
    """The bridge of a segment; with a _PRT if any device on its bus has an interrupt pin, or may come to have one
    (`shared_routing`: see `slot_interrupts`), and with slots for hotplug if they have registers at a port. `node`: the NUMA node
    that it is near (_PXM; ACPI 6.4, 6.2.14)."""
    routing = [aml.name("_PRT", _routing(segment.intx))] if segment.intx else []
    if shared_routing:
        routing = [aml.method("_PRT", 0, aml.return_(aml.name_string(_SLOT_INTERRUPTS)))]
    hotplug = [] if slot_registers is None else [slots(segment.segment, slot_registers, 1 if segment.bridge else 0)]
    return aml.device(
        bridge_name(segment),
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(segment.segment)),
        aml.name("_SEG", aml.integer(segment.segment)),
        aml.name("_BBN", aml.integer(segment.start_bus)),
        aml.name("_CRS", aml.resource_template(*_resources(segment))),
        *([] if node is None else [aml.name("_PXM", aml.integer(node))]),
        *routing,
        _osc(),
        *hotplug,
    )


def _routing(wires: Sequence[IntxWire]) -> bytes:
    """For a _PRT (ACPI 6.4, 6.2.13): for all functions of a slot, pin 0 (INTA), no link device: a global system interrupt.

    Such an interrupt is level-triggered and active low, as PCI's are, where nothing else says how it is.
    """
    entries = (
        aml.package(aml.integer(wire.slot << 16 | 0xFFFF), aml.integer(0), aml.integer(0), aml.integer(wire.gsi))
        for wire in wires
    )
    return aml.package(*entries)


def _resources(segment: PciSegment) -> list[bytes]:
    """The buses, the ports of configuration mechanism 1 (which reaches segment 0 alone), the windows."""
    resources = [aml.bus_numbers(segment.start_bus, segment.end_bus)]
    if segment.segment == 0:
        resources.append(aml.io_ports(_CONFIG_ADDRESS, _CONFIG_PORTS))
    resources += [aml.io_window(w.base, w.size) for w in segment.io]
    if segment.mmio32 is not None:
        resources.append(aml.memory_window32(segment.mmio32.base, segment.mmio32.size))
    if segment.mmio64 is not None:
        resources.append(aml.memory_window64(segment.mmio64.base, segment.mmio64.size))
    return resources


def _osc() -> bytes:
    """_OSC (UUID, revision, count, capabilities): grants what `GRANTED` says and clears the rest of the control dword."""
    identifier, revision, capabilities = aml.arg(0), aml.arg(1), aml.arg(3)
    granted = aml.local(0)
    status, control = aml.name_string("CDW1"), aml.name_string("CDW3")

    def report(error: int) -> bytes:
        return aml.or_(status, aml.integer(error), status)

    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(capabilities, aml.integer(0), "CDW1"),
        aml.if_(
            aml.lequal(identifier, aml.uuid(_PCI_HOST_BRIDGE)),
            aml.create_dword_field(capabilities, aml.integer(8), "CDW3"),
            aml.and_(control, aml.integer(GRANTED), granted),
            aml.if_(aml.lnot(aml.lequal(granted, control)), report(_Status.CAPABILITIES_MASKED)),
            aml.if_(aml.lnot(aml.lequal(revision, aml.integer(1))), report(_Status.UNRECOGNIZED_REVISION)),
            aml.store(granted, control),
        ),
        aml.else_(report(_Status.UNRECOGNIZED_UUID)),
        aml.return_(capabilities),
        serialized=True,
    )
