"""The interrupt controller's state: which registers it is in, and in what order they are put into one that is new.

What the order has to heed: the revision says what all others mean; a redistributor's tables before it takes messages, whether an
interrupt is an edge or a level, and its line, before it is pending; the translation service after the controller, its queue
before where it stands in it, its tables before it works. Messages that wait, and the service's tables, are not in registers:
KVM writes them to the guest's memory when it is asked to, so that memory is read after this and has to be there before it is put.

The lines of SPIs are their devices' to assert again: they are not in it.

Sources: Documentation/virt/kvm/devices/{arm-vgic-v3,arm-vgic-its}.rst; Arm IHI 0069 (GICv3), chapter 12.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.errors import KvmError, SnapshotError
from aiovmm.kvm.aarch64.device import KvmDevice
from aiovmm.kvm.aarch64.gic import FIRST_SPI, SPIS, Gic
from aiovmm.native import ffi
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["GicImage", "read_gic"]

_DIST_REGS, _CTRL, _REDIST_REGS, _CPU_SYSREGS, _LEVEL_INFO, _ITS_REGS = 1, 4, 5, 6, 7, 8  # KVM_DEV_ARM_VGIC_GRP_*
_SAVE_TABLES, _RESTORE_TABLES, _SAVE_PENDING_TABLES = 1, 2, 3


@dataclass(frozen=True)
class _Bank:
    """Registers of one kind, one after the other: `step` bytes each, which is also how wide they are accessed."""

    name: str
    group: int
    offset: int
    count: int = 1
    step: int = 4

    def attributes(self, place: int) -> list[int]:
        """Of all of them, in what is at `place` (see `_place`)."""
        return [place << 32 | self.offset + index * self.step for index in range(self.count)]


def _of_spis(name: str, offset: int, bits: int) -> _Bank:
    """A distributor's registers that have `bits` for each interrupt: those of SPIs."""
    return _Bank(name, _DIST_REGS, offset + FIRST_SPI * bits // 8, SPIS * bits // 32)


_DISTRIBUTOR = (
    _Bank("revision", _DIST_REGS, 0x8),  # GICD_IIDR
    _Bank("control", _DIST_REGS, 0x0),
    _of_spis("group", 0x80, 1),
    _of_spis("trigger", 0xC00, 2),
    _of_spis("priority", 0x400, 8),
    _of_spis("route", 0x6000, 64),
    _of_spis("enabled", 0x100, 1),
    _of_spis("pending", 0x200, 1),
    _of_spis("active", 0x300, 1),
)
_REDISTRIBUTOR = (
    _Bank("configuration_table", _REDIST_REGS, 0x70, 2),  # GICR_PROPBASER, by halves
    _Bank("pending_table", _REDIST_REGS, 0x78, 2),
    _Bank("control", _REDIST_REGS, 0x0),
    _Bank("group", _REDIST_REGS, 0x10080),
    _Bank("trigger", _REDIST_REGS, 0x10C04),  # of PPIs; SGIs are edges
    _Bank("priority", _REDIST_REGS, 0x10400, 8),
    _Bank("enabled", _REDIST_REGS, 0x10100),
    _Bank("lines", _LEVEL_INFO, 0),
    _Bank("pending", _REDIST_REGS, 0x10200),
    _Bank("active", _REDIST_REGS, 0x10300),
)
_SERVICE = (
    _Bank("revision", _ITS_REGS, 0x4, step=8),
    _Bank("queue", _ITS_REGS, 0x80, step=8),
    _Bank("read", _ITS_REGS, 0x90, step=8),
    _Bank("written", _ITS_REGS, 0x88, step=8),
    _Bank("tables", _ITS_REGS, 0x100, 8, step=8),
)
_SERVICE_CONTROL = _Bank("control", _ITS_REGS, 0x0, step=8)


def _interface(name: str, op1: int, crn: int, crm: int, op2: int, count: int = 1) -> _Bank:
    """Registers of a processor's interface to it, by the fields that name them in instructions."""
    return _Bank(name, _CPU_SYSREGS, 3 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2, count, step=8)


_CONTROL = _interface("control", 0, 12, 12, 4)
_INTERFACE = (
    _interface("system_registers", 0, 12, 12, 5),
    _CONTROL,
    _interface("group_0", 0, 12, 12, 6),
    _interface("group_1", 0, 12, 12, 7),
    _interface("priority_mask", 0, 4, 6, 0),
    _interface("binary_point_0", 0, 12, 8, 3),
    _interface("binary_point_1", 0, 12, 12, 3),
)


def _active_priorities(control: int) -> tuple[_Bank, ...]:
    """As many as it takes for the priorities that ICC_CTLR_EL1 says there are."""
    bits = (control >> 8 & 7) + 1
    count = 1 << min(max(bits - 5, 0), 2)
    return tuple(
        _Bank(f"active_priorities_{group}", _CPU_SYSREGS, 3 << 14 | 12 << 7 | crm << 3 | op2, count, step=1)
        for group, crm, op2 in ((0, 8, 4), (1, 9, 0))
    )


_WIDE = {_CPU_SYSREGS, _ITS_REGS}
"""Groups whose values are of 64 bits."""


def _read(device: KvmDevice, bank: _Bank, place: int = 0) -> list[int]:
    value = ffi.new("uint64_t *" if bank.group in _WIDE else "uint32_t *")
    found = []
    for attribute in bank.attributes(place):
        device.get(bank.group, attribute, value, f"reading {bank.name}")
        found.append(int(value[0]))
    return found


def _write(device: KvmDevice, bank: _Bank, values: Sequence[int], place: int = 0) -> None:
    kind = "uint64_t *" if bank.group in _WIDE else "uint32_t *"
    for attribute, value in zip(bank.attributes(place), values, strict=True):
        device.set(bank.group, attribute, ffi.new(kind, value), f"setting {bank.name} to {value:#x}")


def _place(mpidr: int) -> int:
    """How attributes name a processor: its four levels of affinity, without what is between them in the register."""
    return mpidr >> 8 & 0xFF00_0000 | mpidr & 0xFF_FFFF


def read_gic(gic: Gic, mpidrs: Sequence[int]) -> State:
    """All of it, of a VM whose vCPUs stand still; `mpidrs` are theirs. What is in the guest's memory is written there. Raises
    KvmError."""
    controller, service = gic.controller, gic.service
    service.set(_CTRL, _SAVE_TABLES, None, "saving the tables")
    controller.set(_CTRL, _SAVE_PENDING_TABLES, None, "saving the messages that wait")
    return {
        "distributor": {bank.name: _read(controller, bank) for bank in _DISTRIBUTOR},
        "processors": [_read_processor(controller, _place(mpidr)) for mpidr in mpidrs],
        "service": {bank.name: _read(service, bank) for bank in (*_SERVICE, _SERVICE_CONTROL)},
    }


def _read_processor(controller: KvmDevice, place: int) -> State:
    state: State = {
        "redistributor": {bank.name: _read(controller, bank, place) for bank in _REDISTRIBUTOR},
        "interface": {bank.name: _read(controller, bank, place) for bank in _INTERFACE},
    }
    interface = state["interface"]
    for bank in _active_priorities(interface[_CONTROL.name][0]):
        interface[bank.name] = _read(controller, bank, place)
    return state


_Values = tuple[tuple[_Bank, list[int]], ...]
"""In the order in which they are set."""


@dataclass(frozen=True, eq=False)
class GicImage:
    """Its state, checked, to be put into any number of new ones."""

    distributor: _Values
    processors: tuple[_Values, ...]
    service: _Values

    @classmethod
    def read(cls, fields: Fields, processors: int) -> GicImage:
        """From what `read_gic` gave of as many processors. Raises SnapshotError."""
        image = cls(
            _values(fields.fields("distributor"), _DISTRIBUTOR),
            tuple(_processor(one) for one in fields.several("processors", processors)),
            _values(fields.fields("service"), (*_SERVICE, _SERVICE_CONTROL)),
        )
        fields.end()
        return image

    def put(self, gic: Gic, mpidrs: Sequence[int]) -> None:
        """Into a new one, of a VM that has the guest's memory and all its vCPUs. Raises SnapshotError for what this KVM does not
        take."""
        try:
            self._put(gic, mpidrs)
        except KvmError as exc:
            hint = "restore it on a host with the same kernel, or a newer one"
            raise SnapshotError(f"KVM does not take the interrupt controller's state here: {exc}; {hint}") from exc

    def _put(self, gic: Gic, mpidrs: Sequence[int]) -> None:
        for bank, values in self.distributor:
            _write(gic.controller, bank, values)
        for mpidr, banks in zip(mpidrs, self.processors, strict=True):
            for bank, values in banks:
                _write(gic.controller, bank, values, _place(mpidr))
        for bank, values in self.service:
            if bank is _SERVICE_CONTROL:
                gic.service.set(_CTRL, _RESTORE_TABLES, None, "restoring the tables")
            _write(gic.service, bank, values)


def _processor(fields: Fields) -> _Values:
    redistributor = _values(fields.fields("redistributor"), _REDISTRIBUTOR)
    interface = fields.fields("interface")
    (control,) = interface.numbers(_CONTROL.name, 1)
    values = _values(interface, (*_INTERFACE, *_active_priorities(control)))
    fields.end()
    return redistributor + values


def _values(fields: Fields, banks: Sequence[_Bank]) -> _Values:
    most = 0xFFFF_FFFF
    values = tuple(
        (bank, fields.numbers(bank.name, bank.count, 0, most << 32 | most if bank.group in _WIDE else most))
        for bank in banks
    )
    fields.end()
    return values
