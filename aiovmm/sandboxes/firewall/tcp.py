"""The server's end of one connection of TCP, whose other end is the guest's kernel. Pure: it is given what comes, and gives back
what is to be sent.

The way between keeps the order and hardly loses anything, so what comes out of order is not kept: it comes again. What is sent
is kept until it is acknowledged, and sent again as a whole. Source: RFC 9293.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from aiovmm.sandboxes.firewall.packet import TCP, Packet, back

__all__ = ["Segment", "Stream", "reset", "segment_of"]

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_HEADER = struct.Struct(">HHIIBBHHH")
_CHECKSUM = 16  # where it is
_WINDOW = 8192  # bytes of what comes that are kept until they are taken
_MSS = 1220  # bytes of a segment to whoever says nothing of more, and at most: IPv6's least MTU has room for it
_LEAST_MSS = 536  # every host takes so much (RFC 9293, 3.7.1); with less an answer would be a thousand segments at once
_MASK = 0xFFFFFFFF


class Segment(NamedTuple):
    """`number` is of its first byte, `acknowledged` of the next one that its sender wants."""

    number: int
    acknowledged: int
    flags: int
    window: int
    mss: int
    data: bytes


def segment_of(packet: Packet) -> Segment | None:
    """What a packet of TCP says; None if it is none."""
    _, _, number, acknowledged, offset, flags, window, _, _ = _HEADER.unpack_from(packet.payload)
    size = (offset >> 4) * 4
    if not _HEADER.size <= size <= len(packet.payload):
        return None
    return Segment(
        number, acknowledged, flags, window, _mss(packet.payload[_HEADER.size : size]), packet.payload[size:]
    )


def _mss(options: bytes) -> int:
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if options[at] == 2 and size == 4 and at + 4 <= len(options):
            return max(_LEAST_MSS, min(_MSS, int.from_bytes(options[at + 2 : at + 4], "big")))
        at += max(size, 2)
    return 536


def reset(packet: Packet, segment: Segment) -> bytes:
    """The frame that tells the sender of a segment that there is no such connection."""
    size = len(segment.data) + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    if segment.flags & ACK:
        return _frame(packet, segment.acknowledged, 0, RST, 0)
    return _frame(packet, 0, segment.number + size & _MASK, RST | ACK, 0)


def _frame(packet: Packet, number: int, wanted: int, flags: int, window: int, data: bytes = b"") -> bytes:
    source, target = packet.ports
    offset = 0x50
    options = b""
    if flags & SYN:
        options, offset = struct.pack(">BBH", 2, 4, _MSS), 0x60
    head = _HEADER.pack(target, source, number & _MASK, wanted & _MASK, offset, flags, window, 0, 0)
    return back(packet, TCP, head + options + data, _CHECKSUM)


class Stream:
    """Begun by `packet`, whose segment has SYN. `number`: the first of ours. `data` is what has come, and is the owner's to take;
    `write` sends. `ended`: no more comes. `over`: nothing is to be said any more."""

    def __init__(self, packet: Packet, segment: Segment, number: int) -> None:
        self._packet = packet
        self._mss = segment.mss
        self._wanted = segment.number + 1 & _MASK
        self._window = segment.window
        self._first = number & _MASK  # that is not acknowledged: of SYN, then of what is sent
        self._open = False
        self._out = bytearray()  # not acknowledged
        self._sent = self._most_sent = 0  # bytes of it that are under way, and that were before they were sent again
        self._ends = self._end_sent = self._end_said = self._end_heard = False
        self.data = bytearray()
        self.ended = self.over = False

    @property
    def waits(self) -> bool:
        """For an acknowledgement: it may have to send again."""
        return not self.over and (bool(self._out) or (self._ends and not self._end_heard))

    @property
    def unread(self) -> int:
        """Bytes that were written and not acknowledged."""
        return len(self._out)

    @property
    def is_low(self) -> bool:
        """Whether there is little room for what comes."""
        return len(self.data) > _WINDOW // 2

    def begun(self) -> list[bytes]:
        """Frames that answer its beginning."""
        return [_frame(self._packet, self._first, self._wanted, SYN | ACK, _WINDOW)]

    def received(self, segment: Segment) -> list[bytes]:
        """Frames that answer it."""
        if segment.flags & RST:
            self.over |= segment.number == self._wanted
            return []
        if segment.flags & SYN:
            return self.begun() if not self._open else [self._said(ACK)]
        if not segment.flags & ACK:
            return []
        if not self._acknowledge(segment):
            return [self._said(ACK)]
        is_new = self._take(segment)
        frames = self._send()
        self.over |= self.ended and self._end_heard
        return frames if frames or not is_new else [self._said(ACK)]

    def write(self, data: bytes) -> list[bytes]:
        """Frames with what may be sent of it now; the rest goes when there is room."""
        self._out += data
        return self._send()

    def close(self) -> list[bytes]:
        """Nothing more is written: frames that tell it, if all before may be sent now."""
        self._ends = True
        return self._send()

    def again(self) -> list[bytes]:
        """Frames with what was not acknowledged, or as much of it as finds out whether there is room."""
        self._sent, self._end_sent = 0, False
        self._window = max(self._window, 1)
        return self._send()

    def taken(self) -> list[bytes]:
        """Some of `data` was, when there was little room: the frame that says that there is more."""
        return [self._said(ACK)]

    def broken(self) -> list[bytes]:
        """It is over at once: the frame that tells it."""
        self.over = True
        return [self._said(RST | ACK)]

    def _acknowledge(self, segment: Segment) -> bool:
        """Whether it acknowledges nothing that was never said."""
        count = segment.acknowledged - self._first & _MASK
        if not self._open:
            self._open = count == 1
            count, self._first = 0, self._first + self._open & _MASK
        if count >> 31:  # old
            return True
        if not self._open or count > self._most_sent + self._end_said:
            return False
        self._end_heard |= self._end_said and count > len(self._out)
        count = min(count, len(self._out))
        del self._out[:count]
        self._sent, self._most_sent = max(0, self._sent - count), self._most_sent - count
        self._first = self._first + count & _MASK
        self._window = segment.window
        return True

    def _take(self, segment: Segment) -> bool:
        """Whether there was anything in it."""
        old = self._wanted - segment.number & _MASK
        data = segment.data[old:] if old <= len(segment.data) else b""
        room = _WINDOW - len(self.data)
        in_order = old <= len(segment.data) and not self.ended
        if in_order:
            self.data += data[:room]
            self._wanted = self._wanted + len(data[:room]) & _MASK
            if segment.flags & FIN and len(data) <= room:
                self.ended = True
                self._wanted = self._wanted + 1 & _MASK
        return bool(segment.data) or bool(segment.flags & FIN) or old != 0

    def _send(self) -> list[bytes]:
        frames: list[bytes] = []
        if not self._open or self.over:
            return frames
        while (size := min(self._mss, min(self._window, len(self._out)) - self._sent)) > 0:
            frames.append(self._said(PSH | ACK, self._sent, bytes(self._out[self._sent : self._sent + size])))
            self._sent += size
        self._most_sent = max(self._sent, self._most_sent)
        if self._ends and not self._end_sent and self._sent == len(self._out):
            frames.append(self._said(FIN | ACK, self._sent))
            self._end_sent = self._end_said = True
        return frames

    def _said(self, flags: int, at: int | None = None, data: bytes = b"") -> bytes:
        at = self._most_sent + self._end_said if at is None else at
        return _frame(self._packet, self._first + at, self._wanted, flags, _WINDOW - len(self.data), data)
