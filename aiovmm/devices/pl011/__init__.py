"""The PL011 UART of arm64 machines: pure state machine, and its shell on the bus."""

from aiovmm.devices.pl011.port import Pl011Port
from aiovmm.devices.pl011.state import HANDED_OVER, Pl011State
from aiovmm.devices.pl011.uart import Pl011

__all__ = ["HANDED_OVER", "Pl011", "Pl011Port", "Pl011State"]
