"""The row of the serial port, which is another chip on each architecture and the same to its user."""

from __future__ import annotations

from aiovmm.device_model.row import DeviceRow

__all__ = ["serial_port"]


def serial_port(chip: str) -> DeviceRow:
    """`chip`: what the guest finds, and where."""
    return DeviceRow(
        "Serial port",
        True,
        "on in `aiovmm run` and VMConfig",
        "--serial tty|pty|socket=PATH|file=PATH|null|off",
        back_ends="the program's streams always; terminal, pseudo-terminal, unix socket or file",
        limits=f"{chip}; a character timeout is due at once; input has back-pressure, and what the guest's driver clears "
        "unread while it sets the port up comes again: nothing typed ahead is lost; output never stalls the guest",
    )
