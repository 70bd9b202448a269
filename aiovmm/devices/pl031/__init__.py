"""The PL031 real-time clock of arm64 machines: pure state machine, and its shell on the bus."""

from aiovmm.devices.pl031.clock import Pl031, Pl031State
from aiovmm.devices.pl031.port import Pl031Rtc

__all__ = ["Pl031", "Pl031Rtc", "Pl031State"]
