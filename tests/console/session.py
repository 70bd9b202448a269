"""A small guest on a real terminal, for the tests that drive one: `python -m tests.console.session`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import uvloop

from aiovmm.console import Console


class EchoGuest:
    """Shows what is typed, names ctrl-c, and tells the size it is given."""

    def __init__(self) -> None:
        self.console = Console(self)
        self.console.feed(b"guest is up\r\n")

    def receive(self, data: bytes) -> int:
        self.console.feed(data.replace(b"\x03", b"[interrupt]").replace(b"\r", b"\r\n"))
        return len(data)

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        pass

    def resize(self, cols: int, rows: int) -> None:
        self.console.feed(b"[%dx%d]" % (cols, rows))


async def main() -> None:
    guest = EchoGuest()
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for _ in range(2):
        end = await guest.console.attach()
        print("\r\nended:", end.value)


if __name__ == "__main__":
    try:
        uvloop.run(main())
    except asyncio.CancelledError:
        print("cancelled")
