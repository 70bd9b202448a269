"""A guest that may send from its own addresses alone (`anti_spoof`): what leaves it, and what does not."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from aiovmm.config import NetConfig
from aiovmm.config.options import parse_net
from aiovmm.devices.virtio.net import NetDevice, SocketBackend
from aiovmm.errors import ConfigError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import ready

MAC, OTHER, ALL = (bytes.fromhex(text) for text in ("2e0000000001", "2e0000000002", "ffffffffffff"))
IP, IP6, LINK = "10.0.0.2", "fd00::2", "fe80::1"
NEEDS_CSUM = 1


def ethernet(kind: int, body: bytes, source: bytes = MAC) -> bytes:
    return ALL + source + kind.to_bytes(2, "big") + body


def ipv4(source: str = IP, *, header: int = 20) -> bytes:
    address = ip_address(source).packed
    head = struct.pack(">BBHHHBBH", 0x40 | header // 4, 0, header + 20, 0, 0, 64, 17, 0) + address + bytes(4)
    return ethernet(0x0800, head.ljust(header, b"\1") + bytes(20))


def arp(hardware: bytes = MAC, source: str = IP, kind: bytes = b"\0\1\x08\0\6\4") -> bytes:
    return ethernet(0x0806, kind + b"\0\2" + hardware + ip_address(source).packed + OTHER + bytes(4))


def ipv6(payload: bytes, source: str = IP6, kind: int = 17, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return ethernet(
        0x86DD, struct.pack(">IHBB", 6 << 28, size, kind, 255) + ip_address(source).packed + bytes(16) + payload
    )


def solicitation(hardware: bytes = MAC) -> bytes:
    return struct.pack(">BBHI", 135, 0, 0, 0) + bytes(16) + b"\1\1" + hardware


def advertisement(target: str = IP6, hardware: bytes = MAC, option: bytes = b"\2\1") -> bytes:
    return struct.pack(">BBHI", 136, 0, 0, 0x60000000) + ip_address(target).packed + option + hardware


def behind(kind: int, payload: bytes, first: int = 0) -> bytes:
    """After a destination option's header, or a fragment's at `first` eight bytes."""
    return (struct.pack(">BBHI", kind, 0, first << 3 | 1, 7) if first >= 0 else bytes([kind]) + bytes(7)) + payload


SENT = {
    "IPv4": ipv4(),
    "IPv4 of a network": ipv4("10.1.200.3"),
    "who has no address yet": ipv4("0.0.0.0"),
    "options of IPv4": ipv4(header=60),
    "ARP": arp(),
    "an ARP probe": arp(source="0.0.0.0"),
    "IPv6": ipv6(bytes(20)),
    "link-local": ipv6(bytes(20), LINK),
    "a neighbour is asked for": ipv6(solicitation(), kind=58),
    "duplicate addresses are": ipv6(solicitation()[:24], "::", 58),
    "a neighbour answers": ipv6(advertisement(), kind=58),
    "and for its link-local address": ipv6(advertisement(LINK), LINK, 58),
    "pings": ipv6(bytes([128]) + bytes(60), kind=58),
    "routers are asked for": ipv6(bytes([133]) + bytes(7) + b"\1\1" + MAC, LINK, 58),
    "other headers": ipv6(behind(17, bytes(20), -1), kind=60),
    "a first fragment": ipv6(behind(17, bytes(24)), kind=44),
    "a later fragment": ipv6(behind(58, advertisement("fd00::9"), 3), kind=44),
    "a large one": ipv4() + bytes(1400),
}
REFUSED = {
    "another's MAC address": ipv4().replace(MAC, OTHER, 1),
    "another's IPv4 address": ipv4("10.0.0.3"),
    "the host's": ipv4("127.0.0.1"),
    "IPv4 cut short": ethernet(0x0800, b"\x45" + bytes(10)),
    "IPv4 without a header": ethernet(0x0800, b"\x41" + ipv4()[15:]),
    "IPv6 that says IPv4": ethernet(0x0800, ipv6(bytes(20))[14:]),
    "ARP for another": arp(source="10.0.0.1"),
    "ARP of another": arp(OTHER),
    "ARP of other hardware": arp(kind=b"\0\6\x08\0\6\4"),
    "ARP cut short": arp()[:40],
    "another's IPv6 address": ipv6(bytes(20), "fd00::3"),
    "IPv4 within IPv6": ipv6(bytes(20), "::ffff:10.0.0.2"),
    "a neighbour's address": ipv6(solicitation(OTHER), kind=58),
    "an answer for another": ipv6(advertisement("fd00::9"), kind=58),
    "an answer that leads elsewhere": ipv6(advertisement(hardware=OTHER), kind=58),
    "that at the second option": ipv6(advertisement() + b"\2\1" + OTHER, kind=58),
    "an option without a length": ipv6(advertisement(option=b"\2\0"), kind=58),
    "an option that goes on": ipv6(advertisement(option=b"\2\2"), kind=58),
    "a router": ipv6(bytes([134]) + bytes(15), LINK, 58),
    "a redirection": ipv6(bytes([137]) + bytes(39), LINK, 58),
    "discovery behind options": ipv6(behind(58, advertisement("fd00::9"), -1), kind=60),
    "discovery in fragments": ipv6(behind(58, advertisement()), kind=44),
    "headers in fragments": ipv6(behind(60, bytes([58, 3]) + bytes(6)), kind=44),
    "headers without an end": ipv6(behind(60, b"", -1) * 80, kind=60),
    "what is behind the end": ipv6(behind(58, advertisement(), -1), kind=60, length=8),
    "tagged": ethernet(0x8100, b"\0\1\x08\0" + ipv4()[14:]),
    "spanning trees": ALL + MAC + b"\0\x26" + bytes(38),
    "other protocols": ethernet(0x88CC, bytes(40)),
}
REWRITTEN = {  # frames, and where the host is to put a checksum
    "the source's address": (ipv4(), 14, 12),
    "the MAC address": (ipv4(), 0, 6),
    "ARP": (arp(), 14, 14),
    "IPv6": (ipv6(bytes(20)), 14, 8),
    "an answer's target": (ipv6(advertisement(), kind=58), 54, 8),
    "the type of ICMP": (ipv6(bytes([128]) + bytes(60), kind=58), 54, 0),
}


async def sent(
    frame: bytes,
    *,
    start: int = 0,
    offset: int | None = None,
    only_from: tuple[str, ...] = (IP, "10.1.0.0/16", IP6),
) -> bool:
    """Whether that leaves the guest, and then as it is; if not it counts as an error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    device = NetDevice(SocketBackend(ours, vnet_hdr=True), mac=MAC, only_from=only_from)
    header = struct.pack("<BBHHHHH", 0 if offset is None else NEEDS_CSUM, 0, 0, 0, start, offset or 0, 0)
    with theirs:
        async with Harness(device) as harness:
            await ready(device)
            await harness.request(1, [header, frame[:20], frame[20:]], [])
            try:
                got = theirs.recv(70000)
            except BlockingIOError:
                assert device.counters.tx_errors == 1
                return False
            assert got[12:] == frame
            assert device.counters.tx_errors == 0
            return True


@pytest.mark.parametrize("frame", SENT.values(), ids=SENT)
async def test_what_is_its_own_is_sent(frame: bytes) -> None:
    assert await sent(frame)


@pytest.mark.parametrize("frame", REFUSED.values(), ids=REFUSED)
async def test_what_is_not_is_refused(frame: bytes) -> None:
    assert not await sent(frame)


@pytest.mark.parametrize(("frame", "start", "offset"), REWRITTEN.values(), ids=REWRITTEN)
async def test_no_checksum_is_put_where_one_looked(frame: bytes, start: int, offset: int) -> None:
    assert not await sent(frame, start=start, offset=offset)
    assert await sent(ipv4(), start=34, offset=6)
    assert await sent(ipv6(advertisement(), kind=58), start=54, offset=2)


async def test_without_ip_addresses_the_mac_address_counts() -> None:
    assert await sent(ipv4("192.0.2.1"), only_from=())
    assert await sent(arp(source="192.0.2.1"), only_from=())
    assert not await sent(arp(OTHER), only_from=())
    assert not await sent(ipv4().replace(MAC, OTHER, 1), only_from=())


async def test_a_checksum_beyond_the_frame_is_no_legal_header() -> None:
    assert not await sent(ipv4(), start=34, offset=19)
    assert await sent(ipv4(), start=34, offset=18)


def test_the_option_names_addresses() -> None:
    config = parse_net("tap=t,mac=2e:00:00:00:00:01,anti_spoof=on,guest_ip=[10.0.0.2,fd00::/64]")
    assert config.anti_spoof
    assert config.guest_ip == ("10.0.0.2", "fd00::/64")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tap=t,guest_ip=[10.0.0.2]", r"net\.guest_ip: .*anti_spoof=on"),
        ("tap=t,anti_spoof=on,guest_ip=[10.0.0.300]", r"net\.guest_ip: .*10\.0\.0\.300"),
        ("tap=t,anti_spoof=on,guest_ip=[10.0.0.2/24]", r"net\.guest_ip: .*host bits"),
        ("vhost_user=on,socket=/s,anti_spoof=on", r"net\.anti_spoof"),
    ],
)
def test_what_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_net(text)


def test_so_many_addresses_are_networks() -> None:
    with pytest.raises(ConfigError, match="name networks"):
        NetConfig(tap="t", anti_spoof=True, guest_ip=tuple(f"10.0.0.{n}" for n in range(65)))


@pytest.mark.parametrize("addresses", [[f"10.0.0.{n}" for n in range(65)], ["nobody"]])
def test_a_device_of_a_programs_own_takes_no_others(addresses: list[str]) -> None:
    """Native code has room for so many, and reads as many as it is told."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(ConfigError, match=r"net\.guest_ip"):
        NetDevice(SocketBackend(ours, vnet_hdr=True), mac=MAC, only_from=addresses)
