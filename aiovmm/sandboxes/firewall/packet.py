"""Ethernet frames with an IP packet, taken apart as far as a filter has to know, and the answers that it gives. Pure.

A frame that can be understood in two ways is none: fragments, IPv4 options and IPv6 extension headers, lengths that disagree.
Sources: RFC 791, 8200, 768, 792, 4443.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["ARP", "ICMP", "ICMPV6", "TCP", "UDP", "Packet", "answer", "back", "dissect", "prohibited"]

ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_ETHERNET = 14
_LEAST = {TCP: 20, UDP: 8, ICMP: 8, ICMPV6: 4}
_QUOTED = 512  # bytes of what was refused that its sender gets back; the answer is at most 1,280
_HOPS = 64


class Packet(NamedTuple):
    """`source` and `target` are addresses, of 4 or 16 bytes; `payload` is what is behind the IP header."""

    frame: bytes
    protocol: int
    source: bytes
    target: bytes
    hops: int
    payload: bytes

    @property
    def ports(self) -> tuple[int, int]:
        """Source and target of TCP and UDP."""
        return struct.unpack_from(">HH", self.payload)


def dissect(frame: bytes) -> Packet | None:
    """None for what is no plain packet of TCP, UDP or ICMP."""
    kind = frame[12:14]
    packet = _of_ipv4(frame) if kind == _IPV4 else _of_ipv6(frame) if kind == _IPV6 else None
    if packet is None or len(packet.payload) < _LEAST.get(packet.protocol, 1 << 16):
        return None
    if packet.protocol == UDP and int.from_bytes(packet.payload[4:6], "big") != len(packet.payload):
        return None
    return packet


def _of_ipv4(frame: bytes) -> Packet | None:
    if len(frame) < _ETHERNET + 20 or frame[14] != 0x45:
        return None
    size = int.from_bytes(frame[16:18], "big")
    in_pieces = (frame[20] & 0xBF) | frame[21]
    if not 20 <= size <= len(frame) - _ETHERNET or in_pieces or frame[23] == ICMPV6:
        return None
    return Packet(frame, frame[23], frame[26:30], frame[30:34], frame[22], frame[34 : _ETHERNET + size])


def _of_ipv6(frame: bytes) -> Packet | None:
    if len(frame) < _ETHERNET + 40 or frame[14] >> 4 != 6:
        return None
    size = int.from_bytes(frame[18:20], "big")
    if size > len(frame) - _ETHERNET - 40 or frame[20] == ICMP:
        return None
    return Packet(frame, frame[20], frame[22:38], frame[38:54], frame[21], frame[54 : 54 + size])


def prohibited(packet: Packet, by: bytes) -> bytes | None:
    """The frame that tells the sender that it may not ("communication administratively prohibited"), from the address `by`;
    None to who is not to be answered, by RFC 1122 and 4443."""
    if packet.protocol == ICMP and packet.payload[0] != 8:
        return None
    if packet.protocol == ICMPV6 and packet.payload[0] != 128:
        return None
    quoted = packet.frame[_ETHERNET : _ETHERNET + _QUOTED]
    if len(by) == 4:
        return _framed(packet, ICMP, by, _summed(struct.pack(">BBHI", 3, 13, 0, 0) + quoted, 2))
    message = struct.pack(">BBHI", 1, 1, 0, 0) + quoted
    pseudo = by + packet.source + struct.pack(">II", len(message), ICMPV6)
    return _framed(packet, ICMPV6, by, _summed(message, 2, pseudo))


def answer(packet: Packet, data: bytes) -> bytes:
    """The frame with `data` as answer to a datagram."""
    source, target = packet.ports
    return back(packet, UDP, struct.pack(">HHHH", target, source, 8 + len(data), 0) + data, 6)


def back(packet: Packet, protocol: int, payload: bytes, at: int) -> bytes:
    """The frame with `payload`, whose checksum is to be at `at`, from where `packet` goes to whom it comes from."""
    pseudo = packet.target + packet.source
    pseudo += (
        struct.pack(">BBH", 0, protocol, len(payload))
        if len(packet.source) == 4
        else struct.pack(">II", len(payload), protocol)
    )
    return _framed(packet, protocol, packet.target, _summed(payload, at, pseudo))


def _framed(packet: Packet, protocol: int, source: bytes, payload: bytes) -> bytes:
    """Back to who sent it."""
    ethernet = packet.frame[6:12] + packet.frame[0:6] + packet.frame[12:14]
    if len(source) == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, _HOPS, protocol, 0) + source + packet.source
        return ethernet + _summed(header, 10) + payload
    header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, _HOPS) + source + packet.source
    return ethernet + header + payload


def _summed(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """With the Internet checksum at `at` (RFC 1071); a datagram's that is zero is said as its complement."""
    whole = pseudo + data + bytes((len(pseudo) + len(data)) % 2)
    total = sum(struct.unpack(f">{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = (~total & 0xFFFF) or 0xFFFF
    return data[:at] + checksum.to_bytes(2, "big") + data[at + 2 :]
