"""The configuration space of one PCI function: flat bytes, with a write mask for each bit.

The bytes are the state: reading is a copy, so the run loop can answer reads of ECAM from the very same bytes (see
bus.FastPage), and a snapshot has them. Writing merges the bits that the masks allow; what a write means
is decided afterwards by whoever owns the register. Header type 0 (PCI Local Bus 3.0, 6.1), capabilities from 0x40 on. Of the
extended space (0x100 and up) there are no bytes: it reads as zero in every function, which means "no extended capabilities"
(PCI Express Base 4.0, 7.6.2).
"""

from __future__ import annotations

from aiovmm.bus import Policy
from aiovmm.errors import SnapshotError, UsageError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State, once

__all__ = ["CAPABILITIES_END", "COMMAND", "STATUS", "ConfigSpace", "Identity", "overlaps"]

SIZE = 4096
COMMAND = 0x04
STATUS = 0x06
CAPABILITIES_POINTER = 0x34
CAPABILITIES_START = 0x40
CAPABILITIES_END = 0x100  # capabilities and every writable bit lie below

COMMAND_IO = 0x0001
COMMAND_MEM = 0x0002
COMMAND_MASTER = 0x0004
COMMAND_INTX_OFF = 0x0400
_COMMAND_WRITABLE = COMMAND_MASTER | 0x0040 | 0x0100 | COMMAND_INTX_OFF  # parity response, SERR#
STATUS_INTERRUPT = 0x0008
_STATUS_CAP_LIST = 0x0010
_STATUS_RW1C = 0xF900  # error bits, PCI 3.0, 6.2.3


@dataclass(frozen=True)
class Identity:
    """What a function says it is. `class_code` is base class, subclass and interface: 0xBBSSII."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class ConfigSpace:
    """4 KiB of registers. Accesses of any offset and width are defined; what lies outside reads as ones."""

    def __init__(self, identity: Identity) -> None:
        self.data = bytearray(CAPABILITIES_END)
        self._writable = bytearray(CAPABILITIES_END)
        self._clear = bytearray(CAPABILITIES_END)  # bits that a written one clears (RW1C)
        self._last_link = CAPABILITIES_POINTER
        self._free = CAPABILITIES_START
        self.define(0x00, identity.vendor, 2)
        self.define(0x02, identity.device, 2)
        self.define(COMMAND, 0, 2, writable=_COMMAND_WRITABLE)
        self.define(STATUS, 0, 2, clear=_STATUS_RW1C)
        self.define(0x08, identity.class_code << 8 | identity.revision, 4)
        self.define(0x0C, 0, 1, writable=0xFF)  # cache line size: storage only
        self.define(0x2C, identity.subsystem_vendor, 2)
        self.define(0x2E, identity.subsystem, 2)
        self.define(0x3C, 0, 1, writable=0xFF)  # interrupt line: storage only; for pin 0x3D see intx.InterruptPin

    def copy(self) -> ConfigSpace:
        """One of its own, which is as this one is now."""
        new = ConfigSpace.__new__(ConfigSpace)
        new.data, new._writable, new._clear = bytearray(self.data), bytearray(self._writable), bytearray(self._clear)
        new._last_link, new._free = self._last_link, self._free
        return new

    def define(self, offset: int, value: int, size: int, *, writable: int = 0, clear: int = 0) -> None:
        """Lay out a register of `size` bytes: its value, the bits that can be written, the bits that RW1C clears."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
        self._clear[offset : offset + size] = clear.to_bytes(size, "little")

    def allow(self, offset: int, size: int, writable: int) -> None:
        """Make further bits of a register writable."""
        mask = self._field(self._writable, offset, size) | writable
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_capability(self, cap_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability (`body` follows the id and next bytes) to the list; its offset. Raises UsageError if full.

        `writable` masks the body's bits; shorter than the body means that the rest cannot be written.
        """
        offset = self._free
        end = offset + 2 + len(body)
        if end > CAPABILITIES_END:
            raise UsageError(f"PCI capability {cap_id:#x} of {len(body) + 2} bytes does not fit at {offset:#x}")
        self.data[offset] = cap_id
        self.data[offset + 2 : end] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.data[self._last_link] = offset
        self.data[STATUS] |= _STATUS_CAP_LIST
        self._last_link = offset + 1
        self._free = (end + 3) & ~3
        return offset

    def still(self) -> bytes:
        """What `Policy` has of writes that change nothing, for each byte: of any where no bit can be written, of what it holds
        elsewhere, of none where ones clear bits."""
        same, fixed = Policy.DROP_SAME, Policy.DROP_SAME | Policy.IGNORE_WRITE
        kinds = zip(self._writable, self._clear, strict=True)
        return bytes(Policy.SYNC if clears else same if writable else fixed for writable, clears in kinds)

    def get(self, offset: int, size: int) -> int:
        """The register at `offset` as a number."""
        return self._field(self.data, offset, size)

    def put(self, offset: int, size: int, value: int) -> None:
        """Set a register from the device's side, whatever its masks say."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> bytes:
        """What the guest reads; ones outside the 4 KiB."""
        if offset < 0 or offset + size > SIZE:
            return b"\xff" * size
        return bytes(self.data[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Merge the guest's `data` by the masks. What lies outside the writable space is dropped."""
        data = data[: max(CAPABILITIES_END - offset, 0)]
        size = len(data)
        if not size or offset < 0:
            return
        value = int.from_bytes(data, "little")
        mask = self._field(self._writable, offset, size)
        cleared = self._field(self._clear, offset, size) & value
        old = self._field(self.data, offset, size)
        new = (old & ~mask | value & mask) & ~cleared
        self.data[offset : offset + size] = new.to_bytes(size, "little")

    def save(self) -> State:
        """All that the guest can write, and around it what tells which function it is."""
        return {"registers": bytes(self.data)}

    def load(self, state: State) -> None:
        """What the guest had written; an interrupt that is pending its pin tells. Raises SnapshotError if these are not
        the registers of this function."""
        layout = bytes(self.data), bytes(self._writable), bytes(self._clear)
        self.data[:] = once(state, _registers, *layout)

    @staticmethod
    def _field(source: bytearray, offset: int, size: int) -> int:
        return int.from_bytes(source[offset : offset + size], "little")


def _registers(state: State, now: bytes, writable: bytes, clear: bytes) -> bytes:
    """What was saved of registers that are `now` so, and have these masks."""
    fields = Fields(state, "PCI configuration")
    saved = bytearray(fields.data("registers", CAPABILITIES_END))
    fields.end()
    saved[STATUS] &= ~STATUS_INTERRUPT
    here, then, may, clears = (int.from_bytes(part, "little") for part in (now, saved, writable, clear))
    if differ := (here ^ then) & ~(may | clears | STATUS_INTERRUPT << 8 * STATUS):
        offset = ((differ & -differ).bit_length() - 1) // 8
        raise SnapshotError(f"its PCI registers differ at {offset:#x}: that is not the function that was saved")
    return bytes(saved)


def overlaps(offset: int, size: int, start: int, length: int) -> bool:
    """Whether an access of `size` bytes at `offset` touches the register [start, start + length)."""
    return offset < start + length and start < offset + size
