"""Frames of a guest, questions and answers of name servers, made here and not by what is tested."""

from __future__ import annotations

import ipaddress
import struct

MAC, PEER = bytes.fromhex("2e0000000042"), bytes.fromhex("9a5500000002")
GUEST, GUEST6 = "10.0.2.15", "fd00:a10::15"
RESOLVER, RESOLVER6 = "10.0.2.3", "fd00:a10::3"
GATEWAY, GATEWAY6 = "10.0.2.2", "fe80::2"
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ip(
    protocol: int, target: str, payload: bytes, source: str | None = None, *, hops: int = 64, back: bool = False
) -> bytes:
    """A frame with a packet of IPv4 or IPv6, by its target. `back`: to the guest."""
    to = packed(target)
    ethernet = MAC + PEER if back else PEER + MAC
    if len(to) == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, hops, protocol, 0)
        return ethernet + b"\x08\x00" + header + packed(source or GUEST) + to + payload
    header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, hops)
    return ethernet + b"\x86\xdd" + header + packed(source or GUEST6) + to + payload


def syn(target: str, port: int = 443, **more: str) -> bytes:
    return ip(TCP, target, struct.pack(">HHIIBBHHH", 40000, port, 1, 0, 0x50, 2, 65535, 0, 0), **more)  # type: ignore[arg-type]


def segment(
    target: str, flags: int, data: bytes = b"", *, port: int, source_port: int, number: int, acknowledged: int
) -> bytes:
    """Of TCP. `number` is of its first byte."""
    head = struct.pack(">HHIIBBHHH", source_port, port, number, acknowledged, 0x50, flags, 65535, 0, 0)
    return ip(TCP, target, head + data)


def datagram(target: str, data: bytes = b"x", port: int = 443, source_port: int = 40000) -> bytes:
    return ip(UDP, target, struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data)


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".") if label) + b"\0"


def query(text: str, kind: int = 1, number: int = 7, flags: int = 0x0100, more: bytes = b"") -> bytes:
    return struct.pack(">HHHHHH", number, flags, 1, 0, 0, 0) + name(text) + struct.pack(">HH", kind, 1) + more


def ask(text: str, kind: int = 1, number: int = 7, resolver: str = RESOLVER, port: int = 40000) -> bytes:
    return datagram(resolver, query(text, kind, number), 53, port)


def record(owner: bytes, kind: int, data: bytes, seconds: int = 300) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, seconds, len(data)) + data


def address(owner: str | bytes, text: str, seconds: int = 300) -> bytes:
    data = packed(text)
    return record(owner if isinstance(owner, bytes) else name(owner), 1 if len(data) == 4 else 28, data, seconds)


def alias(owner: str, target: str) -> bytes:
    return record(name(owner), 5, name(target))


def answer(text: str, *records: bytes, kind: int = 1, number: int = 7, flags: int = 0x8180) -> bytes:
    head = struct.pack(">HHHHHH", number, flags, 1, len(records), 0, 0)
    return head + name(text) + struct.pack(">HH", kind, 1) + b"".join(records)


def answered(data: bytes, resolver: str = RESOLVER, port: int = 40000, source_port: int = 53) -> bytes:
    """The frame with it."""
    udp = struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data
    return ip(UDP, GUEST if len(packed(resolver)) == 4 else GUEST6, udp, resolver, back=True)


def summed(data: bytes) -> int:
    """The Internet checksum's sum: 0xFFFF over what is whole."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
