"""What a PL011 remembers: after reset, and as firmware hands it over."""

from __future__ import annotations

from aiovmm.devices.pl011 import registers as r
from aiovmm.devices.pl011.receiver import WORDS
from aiovmm.errors import SnapshotError
from aiovmm.runtime.dataclass import dataclass, field_types
from aiovmm.runtime.plain import Fields, State

__all__ = ["HANDED_OVER", "Pl011State"]


_MASKS = {
    "cr": r.CR_MASK,
    "lcr_h": r.MASKS[r.UARTLCR_H],
    "ibrd": r.MASKS[r.UARTIBRD],
    "fbrd": r.MASKS[r.UARTFBRD],
    "ifls": r.MASKS[r.UARTIFLS],
    "imsc": r.INT_MASK,
    "ilpr": r.MASKS[r.UARTILPR],
    "dmacr": r.MASKS[r.UARTDMACR],
    "ris": r.INT_MASK,
    "unseen": r.INT_MASK,
    "lines": r.FR_MODEM,
    "status": 0x0F,
}
_FLAGS = ("overrun", "reading", "transmitting")
_DROPPED_LIMIT = 4096


@dataclass(frozen=True)
class Pl011State:
    """All that a UART remembers; the defaults are its state after reset, with a terminal on the line."""

    cr: int = r.CR_RESET
    lcr_h: int = 0
    ibrd: int = 0
    fbrd: int = 0
    ifls: int = r.IFLS_RESET
    imsc: int = 0
    ilpr: int = 0
    dmacr: int = 0
    ris: int = 0
    unseen: int = 0  # of `ris`: what the guest has not been shown
    lines: int = r.FR_CTS | r.FR_DSR | r.FR_DCD  # modem inputs, as UARTFR has them
    received: tuple[int, ...] = ()  # oldest first, as UARTDR gives them
    status: int = 0  # UARTRSR
    overrun: bool = False  # not told by a character yet
    unsent: bytes = b""  # waits until the transmitter is on
    dropped: bytes = b""
    reading: bool = False  # the driver has read a character since it has set the port up last
    transmitting: bool = False  # UARTDR was written and `transmitted` not called yet

    def save(self) -> State:
        """As plain data."""
        return {**{name: getattr(self, name) for name in field_types(Pl011State)}, "received": list(self.received)}

    @classmethod
    def read(cls, state: State) -> Pl011State:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "serial port")
        numbers = {name: fields.number(name, 0, mask) for name, mask in _MASKS.items()}
        flags = {name: fields.flag(name) for name in _FLAGS}
        received, unsent = fields.numbers("received", high=WORDS), fields.data("unsent", most=r.FIFO_DEPTH)
        dropped = fields.data("dropped", most=_DROPPED_LIMIT)
        fields.end()
        if strange := [word for word in received if word & ~WORDS]:
            raise SnapshotError(f"serial port: {strange[0]:#x} is none of its characters")
        depth = r.FIFO_DEPTH if numbers["lcr_h"] & r.LCR_FIFOS else 1
        if max(len(received), len(unsent)) > depth or numbers["unseen"] & ~numbers["ris"]:
            raise SnapshotError(
                f"serial port: {len(received)} bytes have come and {len(unsent)} wait, for {depth} places"
            )
        return cls(**numbers, **flags, received=tuple(received), unsent=unsent, dropped=dropped)  # type: ignore[arg-type]


HANDED_OVER = Pl011State(
    cr=r.CR_RESET | r.CR_UARTEN, lcr_h=r.LCR_WORD_8 | r.LCR_FIFOS, ibrd=r.BAUD_INTEGER, fbrd=r.BAUD_FRACTION
)
"""As firmware leaves it to a kernel, whose early console only writes: enabled, 115,200 baud of 24 MHz, 8 bits, FIFOs on."""
