"""How the monitor learns that a guest's kernel panicked.

A guest that loads a pvpanic driver says so itself. One that does not prints it on its console, and that is what this watches
for: the fixed first words of Linux's panic message. A guest user can print the same words; all that they gain is
that their own reboot is reported as a panic.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["PanicWatch"]

_WORDS = b"Kernel panic - not syncing"


class PanicWatch:
    """Looks at console output as it goes by. `seen` stays until `clear`."""

    def __init__(self, on_panic: Callable[[str], None]) -> None:
        self.seen = False
        self._on_panic = on_panic
        self._tails: dict[str, bytes] = {}

    def over(self, output: Callable[[bytes], None], stream: str) -> Callable[[bytes], None]:
        """`output` of one stream, watched."""

        def watched(data: bytes) -> None:
            self.watch(data, stream)
            output(data)

        return watched

    def watch(self, data: bytes, stream: str = "serial") -> None:
        """Look at the next piece of one stream of output; a message cut in two pieces is found as well."""
        if self.seen:
            return
        text = self._tails.get(stream, b"") + data
        at = text.find(_WORDS)
        if at < 0:
            self._tails[stream] = text[-len(_WORDS) + 1 :]
            return
        self.seen = True
        self._tails.clear()
        self._on_panic(text[at : at + 200].split(b"\n")[0].decode(errors="replace").strip())

    def clear(self) -> None:
        """A new kernel runs: forget."""
        self.seen = False
        self._tails.clear()
