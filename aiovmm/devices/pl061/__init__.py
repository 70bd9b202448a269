"""The PL061 with the power button of arm64 machines: pure state machines, and their shell on the bus."""

from aiovmm.devices.pl061.key import Key, KeyState
from aiovmm.devices.pl061.lines import Pl061, Pl061State
from aiovmm.devices.pl061.port import POWER_KEY, Pl061Gpio

__all__ = ["POWER_KEY", "Key", "KeyState", "Pl061", "Pl061Gpio", "Pl061State"]
