"""Serial ports: the 16550A UART (pure) and its shell on the bus."""

from aiovmm.devices.serial.port import SerialPort
from aiovmm.devices.serial.uart import Uart16550, UartState

__all__ = ["SerialPort", "Uart16550", "UartState"]
