"""How the monitor learns that a guest's kernel panicked.

A guest with pvpanic says so itself (devices.pvpanic). One without prints it on its console, and that is what this watches
for: the fixed first words of Linux's panic message. A guest user can print the same words; all that they gain is that
their own reboot is reported as a panic.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["PanicWatch"]

_WORDS = b"Kernel panic - not syncing"
_LONGEST = 1024  # bytes of the message; a line of Linux's log has no more


class PanicWatch:
    """Looks at console output as it goes by. `seen` stays until `clear`; `on_panic` gets the message when its line is whole.

    `flush_later` is given `flush` when a message has begun, to call it a moment later: a line may never end.
    """

    def __init__(
        self,
        on_panic: Callable[[str], None],
        flush_later: Callable[[Callable[[], None]], object] = lambda flush: None,
    ) -> None:
        self.seen = False
        self._on_panic = on_panic
        self._flush_later = flush_later
        self._tails: dict[str, bytes] = {}
        self._message: tuple[str, bytes] | None = None  # the stream it comes on, and what has come of it

    def over(self, output: Callable[[bytes], None], stream: str) -> Callable[[bytes], None]:
        """`output` of one stream, watched."""

        def watched(data: bytes) -> None:
            self.watch(data, stream)
            output(data)

        return watched

    def watch(self, data: bytes, stream: str = "serial") -> None:
        """Look at the next piece of one stream of output; a message cut in two pieces is found as well."""
        if self._message is not None:
            if stream == self._message[0]:
                self._gather(stream, self._message[1] + data)
            return
        if self.seen:
            return
        text = self._tails.get(stream, b"") + data
        at = text.find(_WORDS)
        if at < 0:
            self._tails[stream] = text[-len(_WORDS) + 1 :]
            return
        self.seen = True
        self._tails.clear()
        self._gather(stream, text[at:])
        if self._message is not None:
            self._flush_later(self.flush)

    def report(self, message: str) -> None:
        """It is known by other means. Told once, until `clear`."""
        if not self.seen:
            self.seen = True
            self._on_panic(message)

    def flush(self) -> None:
        """The kernel says no more: the message is what has come of it."""
        if self._message is not None:
            message, self._message = self._message[1], None
            self._on_panic(message[:_LONGEST].split(b"\n")[0].decode(errors="replace").strip())

    def _gather(self, stream: str, message: bytes) -> None:
        self._message = stream, message
        if b"\n" in message or len(message) >= _LONGEST:
            self.flush()

    def clear(self) -> None:
        """A new kernel runs: forget."""
        self.flush()
        self.seen = False
        self._tails.clear()
