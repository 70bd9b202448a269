"""What a console needs of the device behind it: a serial port, a virtio console, or a test's stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["ByteDevice", "ResizableDevice"]


class ByteDevice(Protocol):
    """Takes bytes for the guest as it has room for them. All calls are made on the event loop."""

    def receive(self, data: bytes) -> int:
        """How many bytes of `data`, from its beginning, the device took: 0..len(data). Never blocks."""

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        """`callback` is to be called when room appears after `receive` took less than it was given."""


@runtime_checkable
class ResizableDevice(Protocol):
    """A device that tells the guest the size of the terminal (virtio-console; a serial port cannot)."""

    def resize(self, cols: int, rows: int) -> None:
        """The terminal's size from now on, in characters."""
