"""The parts of a machine that arm64 guests are given. See machine.board.

board       the order of the room: vCPUs, then the interrupt controller, then all else
processors  vCPUs as they come out of reset, and the boot processor at the kernel's first instruction
intx        pins of the interrupt controller for PCI functions without messages
platform    serial port, clock, power button
"""
