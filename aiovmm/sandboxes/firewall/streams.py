"""Questions to a name server by TCP, of one guest: their connections end here, and only questions go on. Pure; time is given.

A question that may be asked waits in `asked` for who asks it, and for `answer`. A connection has few under way at a time: what
comes meanwhile waits for them, and then with the guest. Sources: RFC 7766; RFC 1035, 4.2.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from aiovmm.sandboxes.firewall import dns
from aiovmm.sandboxes.firewall.packet import Packet
from aiovmm.sandboxes.firewall.tcp import ACK, RST, SYN, Segment, Stream, reset, segment_of

__all__ = ["Asked", "Streams"]

_MOST = 16  # connections
_AT_A_TIME = 4  # questions of one
_UNDER_WAY = _MOST * _AT_A_TIME  # of all, and of those that are over: name servers may take their time
_UNREAD = 64 << 10  # bytes of answers that one may have and not acknowledge before more of its questions are heard
_LONGEST = 4096  # bytes of a question, whose name has 255: options may fill it up
_LARGEST = 65535
_CLOCK = 250_000  # a second: where a connection's numbers begin, which is to be elsewhere each time


class Asked(NamedTuple):
    """A question whose answer `stream` waits for; `message` is all of it."""

    stream: Stream
    question: dns.Question
    message: bytes


class Streams:
    """`may_ask`: whether a name, in lower case, may be asked for."""

    def __init__(self, may_ask: Callable[[bytes], bool]) -> None:
        self._may_ask = may_ask
        self._open: dict[tuple[bytes, bytes, int], Stream] = {}  # the one that was heard of last is the last
        self._under_way: dict[Stream, int] = {}
        self._asked = 0
        self.asked: deque[Asked] = deque()

    @property
    def waiting(self) -> list[Stream]:
        """Those that may have to send again."""
        return [stream for stream in self._open.values() if stream.waits]

    def received(self, packet: Packet, now: float) -> list[bytes]:
        """Frames that answer one of TCP to a name server."""
        segment = segment_of(packet)
        if segment is None:
            return []
        key = packet.source, packet.target, packet.ports[0]
        stream = self._open.pop(key, None)
        if stream is not None and segment.flags & SYN and stream.ended:
            stream.over = True  # its guest has begun another one
        if stream is None or stream.over:
            return self._begun(key, packet, segment, now)
        frames = stream.received(segment)
        if not stream.over:
            self._open[key] = stream
        return frames + self._taken(stream)

    def answer(self, asked: Asked, message: bytes | None) -> list[bytes]:
        """Frames with the answer to a question, one for each; None is that there is none."""
        stream = asked.stream
        self._asked -= 1
        if stream.over:
            return []
        message = dns.failure(asked.question) if message is None or len(message) > _LARGEST else message
        self._under_way[stream] -= 1
        return stream.write(len(message).to_bytes(2, "big") + message) + self._taken(stream)

    def drop(self, stream: Stream) -> list[bytes]:
        """Frames that end a connection whose guest does not hear."""
        return [] if stream.over else stream.broken()

    def _begun(self, key: tuple[bytes, bytes, int], packet: Packet, segment: Segment, now: float) -> list[bytes]:
        if segment.flags & RST:
            return []
        if segment.flags & (SYN | ACK) != SYN:
            return [reset(packet, segment)]
        for gone in [name for name, stream in self._open.items() if stream.over]:
            del self._open[gone]
        frames = self._open.pop(next(iter(self._open))).broken() if len(self._open) >= _MOST else []
        self._open[key] = stream = Stream(packet, segment, int(now * _CLOCK))
        self._under_way = {known: count for known, count in self._under_way.items() if not known.over} | {stream: 0}
        return frames + stream.begun()

    def _taken(self, stream: Stream) -> list[bytes]:
        """Whole questions out of what has come."""
        refused = b""  # told together: there may be hundreds
        was_low = stream.is_low
        while not stream.over and self._has_room(stream) and len(stream.data) >= 2:
            size = int.from_bytes(stream.data[:2], "big")
            if size > _LONGEST:
                return stream.write(refused) + stream.broken()
            if len(stream.data) < 2 + size:
                break
            message = bytes(stream.data[2 : 2 + size])
            del stream.data[: 2 + size]
            question = dns.question(message)
            if question is None:
                return stream.write(refused) + stream.broken()
            if self._may_ask(question.name) and self._asked < _UNDER_WAY:
                self._under_way[stream] += 1
                self._asked += 1
                self.asked.append(Asked(stream, question, message))
            else:
                no = dns.failure(question) if self._may_ask(question.name) else dns.refusal(question)
                refused += len(no).to_bytes(2, "big") + no
        frames = stream.write(refused)
        if stream.over:
            return frames
        if was_low and not stream.is_low:
            frames += stream.taken()
        if stream.ended and not self._under_way[stream] and self._has_room(stream):
            frames += stream.close()
        return frames

    def _has_room(self, stream: Stream) -> bool:
        return self._under_way[stream] < _AT_A_TIME and stream.unread < _UNREAD
