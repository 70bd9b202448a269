"""The real-time clock and CMOS memory: MC146818 (pure) and its shell on ports 0x70 and 0x71."""

from aiovmm.devices.rtc.port import Rtc
from aiovmm.devices.rtc.registers import CmosClock, CmosState

__all__ = ["CmosClock", "CmosState", "Rtc"]
