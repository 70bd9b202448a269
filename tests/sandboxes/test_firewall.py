"""What the filter before passt lets through: what is allowed, and nothing that only looks so."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import ConfigError
from aiovmm.sandboxes.firewall import Firewall, Rules, Verdict, dns
from aiovmm.sandboxes.network import Network
from tests.sandboxes.frames import (
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    ICMP,
    ICMPV6,
    MAC,
    PEER,
    RESOLVER,
    RESOLVER6,
    TCP,
    UDP,
    address,
    alias,
    answer,
    answered,
    ask,
    datagram,
    ip,
    name,
    packed,
    query,
    record,
    summed,
    syn,
)

OWN = "198.51.100.1"
WEB, WEB6, OTHER = "1.2.3.4", "2600::1", "5.6.7.8"


def firewall(*allow: str, host: bool = False, everything: bool = False) -> Firewall:
    return Firewall(
        Rules(None if everything else allow),
        guest=(GUEST, GUEST6),
        gateways=(GATEWAY, GATEWAY6),
        resolvers=(RESOLVER, RESOLVER6),
        is_own=lambda address: address == packed(OWN),
        host=host,
    )


def passes(wall: Firewall, frame: bytes, now: float = 0.0) -> bool:
    return wall.from_guest(frame, now).passes


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        *(("10.1.2.3", True), ("10.2.0.0", False), ("192.0.2.1", True), ("192.0.2.2", False)),
        *(("2001:db8::5", True), ("2001:db9::5", False), (WEB, False)),
    ],
)
def test_networks(target: str, expected: bool) -> None:
    wall = firewall("10.1.0.0/16", "192.0.2.1", "2001:db8::/32")
    assert passes(wall, syn(target)) is passes(wall, datagram(target)) is expected
    assert passes(wall, syn(target)) is expected  # by what it remembers


@pytest.mark.parametrize("target", [WEB, WEB6])
@pytest.mark.parametrize("padding", [0, 6])
def test_every_segment_of_a_connection_passes_both_ways(target: str, padding: int) -> None:
    """Its beginning, data, either end's last one, and what breaks it off; short frames may be filled up, as a link has them."""
    wall = firewall(WEB, WEB6)
    guest = GUEST if target == WEB else GUEST6
    for flags in range(256):
        for data in (b"", b"data"):
            head = struct.pack(">HHIIBBHHH", 40000, 443, 1, 1, 0x50, flags, 65535, 0, 0)
            assert passes(wall, ip(TCP, target, head + data) + bytes(padding))
            back = struct.pack(">HHIIBBHHH", 443, 40000, 1, 1, 0x50, flags, 65535, 0, 0)
            assert wall.to_guest(ip(TCP, guest, back + data, target, back=True) + bytes(padding), 0.0).passes


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"),
        *("::", "::1", "::ffff:1.2.3.4", "::127.0.0.1", "fe80::1", "ff02::1", OWN),
        *("fd00:ec2::254", "168.63.129.16", "100.100.100.200", "fd20:ce::254", "192.0.0.192"),  # clouds' metadata
        *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1"),  # by a translator, or a tunnel
    ],
)
def test_what_nobody_means_who_allows_all(target: str) -> None:
    assert not passes(firewall("0.0.0.0/0", "::/0"), syn(target))
    assert not passes(firewall(everything=True), syn(target))
    assert not passes(firewall("0.0.0.0/0", "::/0", host=True), syn(target)) or target == OWN


def test_what_has_to_be_named_may_be() -> None:
    assert passes(firewall("169.254.169.254"), syn("169.254.169.254"))
    for never in ("127.0.0.1", "::1", "::ffff:1.2.3.4", "64:ff9b::169.254.169.254"):
        assert not passes(firewall(never), syn(never))


def test_the_host_is_reached_where_that_is_asked_for() -> None:
    for target in (GATEWAY, GATEWAY6):
        assert not passes(firewall(), syn(target))
        assert passes(firewall(host=True), syn(target))
    assert passes(firewall(OWN, host=True), syn(OWN))
    assert not passes(firewall(OWN), syn(OWN))


def test_the_host_is_not_reached_by_a_translator() -> None:
    by = "64:ff9b::" + OWN
    assert not passes(firewall("::/0"), syn(by))
    assert passes(firewall("::/0"), syn("64:ff9b::" + WEB))
    assert passes(firewall("::/0", host=True), syn(by))


# -- names


def test_an_allowed_name_is_reached_at_the_addresses_that_it_has() -> None:
    wall = firewall("web.example", "*.cdn.example")
    assert not passes(wall, syn(WEB))
    assert passes(wall, ask("WEB.example"))
    wall.to_guest(answered(answer("WEB.example", alias("web.example", "a.b"), address("a.b", WEB))), 1.0)
    assert passes(wall, syn(WEB), 1.0)
    assert not passes(wall, syn(OTHER), 1.0)
    assert passes(wall, ask("x.y.cdn.example", 28, 8, RESOLVER6))
    wall.to_guest(
        answered(answer("x.y.cdn.example", address("x.y.cdn.example", WEB6), kind=28, number=8), RESOLVER6), 1.0
    )
    assert passes(wall, syn(WEB6), 1.0)


@pytest.mark.parametrize(
    "asked", ["other.example", "cdn.example", "web.example.evil.org", "xweb.example", "", "a.web.example"]
)
def test_other_names_are_not_asked_for_and_that_is_said(asked: str) -> None:
    """What a question says goes to whoever has the name: it would be a way out."""
    for resolver in (RESOLVER, RESOLVER6):
        passed, reply, _ = firewall("web.example", "*.cdn.example").from_guest(
            ask(asked, number=77, resolver=resolver), 0.0
        )
        assert not passed
        assert reply is not None
        assert reply[:12] == MAC + PEER
        at = 34 if resolver == RESOLVER else 54
        assert reply[at : at + 4] == struct.pack(">HH", 53, 40000)
        data = reply[at + 8 :]
        assert (data[:2], data[2] & 0x80, data[3] & 15) == (struct.pack(">H", 77), 0x80, 5)
        assert data[12:] == query(asked)[12:]
        check_sums(reply)


def check_sums(frame: bytes) -> None:
    if frame[12:14] == b"\x08\x00":
        assert summed(frame[14:34]) == 0xFFFF
        size, protocol, payload, addresses = struct.unpack(">H", frame[16:18])[0], frame[23], frame[34:], frame[26:34]
        assert size == len(frame) - 14
        pseudo = addresses + struct.pack(">BBH", 0, protocol, len(payload))
    else:
        protocol, payload = frame[20], frame[54:]
        assert struct.unpack(">H", frame[18:20])[0] == len(payload)
        pseudo = frame[22:54] + struct.pack(">II", len(payload), protocol)
    assert summed(payload if protocol == ICMP else pseudo + payload) == 0xFFFF


@pytest.mark.parametrize(
    "data",
    [
        answer("web.example", address("other.example", WEB)),
        answer("web.example", address("web.example", WEB), number=8),
        answer("other.example", address("other.example", WEB)),
        answer("web.example", address("web.example", WEB), kind=28),
        answer("web.example", address("web.example", WEB), flags=0x0100),
        answer("web.example", address("web.example", WEB), flags=0x8183),
        answer("web.example", alias("web.example", "a.b"), address("c.d", WEB)),
        answer("web.example", address("web.example", WEB))[:-1],
        answer("web.example", record(name("web.example"), 1, packed(WEB) + b"x")),
        answer("web.example", address(b"\xc0\xff", WEB)),
        answer("web.example", address(b"\xc0\x1d", WEB)),
    ],
)
def test_answers_that_say_nothing(data: bytes) -> None:
    wall = firewall("web.example")
    passes(wall, ask("web.example"))
    wall.to_guest(answered(data), 1.0)
    assert not passes(wall, syn(WEB), 1.0)


def test_an_answer_counts_once_from_who_was_asked_and_in_time() -> None:
    good = answer("web.example", address(b"\xc0\x0c", WEB))
    wall = firewall("web.example")
    wall.to_guest(answered(good), 0.0)  # nobody asked
    assert not passes(wall, syn(WEB))
    for wrong in (
        answered(good, port=41000),
        answered(good, source_port=54),
        answered(good, RESOLVER6),
        answered(good, "9.9.9.9"),
    ):
        wall = firewall("web.example")
        passes(wall, ask("web.example"))
        wall.to_guest(wrong, 1.0)
        assert not passes(wall, syn(WEB), 1.0)
    passes(wall, ask("web.example"))
    wall.to_guest(answered(good), 20.0)
    assert not passes(wall, syn(WEB), 20.0)
    passes(wall, ask("web.example"), 30.0)
    wall.to_guest(answered(good), 31.0)
    assert passes(wall, syn(WEB), 31.0)


@pytest.mark.parametrize(
    "target",
    [
        *(
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            OWN,
        ),
        *(
            "::1",
            "::ffff:1.2.3.4",
            "fd00::1",
            "fe80::1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
            "ff02::1",
            GATEWAY,
            RESOLVER,
        ),
    ],
)
def test_a_name_leads_only_to_the_internet(target: str) -> None:
    """Whoever has an allowed name could point it to what is around this host."""
    wall = firewall("web.example")
    kind = 1 if "." in target and ":" not in target else 28
    passes(wall, ask("web.example", kind))
    wall.to_guest(answered(answer("web.example", address("web.example", target), kind=kind)), 1.0)
    assert not passes(wall, syn(target), 1.0)


def test_an_address_is_forgotten_unless_it_is_in_use() -> None:
    def learned() -> Firewall:
        wall = firewall("web.example")
        passes(wall, ask("web.example"))
        wall.to_guest(answered(answer("web.example", address("web.example", WEB, seconds=5))), 0.0)
        return wall

    assert passes(learned(), syn(WEB), 59.0)
    assert not passes(learned(), syn(WEB), 61.0)
    wall = learned()
    for now in range(0, 5000, 50):
        assert passes(wall, syn(WEB), float(now))
    assert not passes(wall, syn(WEB), 5000.0 + 700)


def test_what_it_remembers_is_bounded() -> None:
    wall = firewall("*.web.example", "0.0.0.0/0")
    for n in range(10_000):
        target = str(ipaddress.ip_address(0x01000000 + n))
        passes(wall, ask(f"{n}.web.example", number=n))
        wall.to_guest(answered(answer(f"{n}.web.example", address(f"{n}.web.example", target), number=n)), 0.0)
        passes(wall, ask(f"{n}.web.example", number=n, port=1 + n))
        passes(wall, syn(target))
    assert max(len(wall._pending), len(wall._learned), len(wall._known)) <= 4096


def test_what_was_longest_neither_told_nor_used_makes_room() -> None:
    """However long it might have been kept: to look for who has least left is work that a name server would give us."""
    wall = firewall("*.web.example")
    for n in range(4099):
        target = {0: OTHER, 1: "8.8.8.8", 4096: WEB}.get(n, str(ipaddress.ip_address(0x02000000 + n)))
        passes(wall, ask("a.web.example"))
        wall.to_guest(
            answered(answer("a.web.example", address("a.web.example", target, 60 if n >= 4096 else 80000))), 0.0
        )
        assert n or passes(wall, syn(OTHER))
        assert n != 4095 or passes(wall, syn(OTHER), 10.0)
    assert passes(wall, syn(WEB), 20.0)
    assert passes(wall, syn(OTHER), 20.0)
    assert not passes(wall, syn("8.8.8.8"), 20.0)


class Counted(bytes):
    """Whose single bytes are counted as they are looked at."""

    looked = 0

    def __getitem__(self, at: Any) -> Any:
        self.looked += isinstance(at, int)
        return super().__getitem__(at)


def test_an_answer_cannot_be_made_of_pointers_without_end() -> None:
    """From one to the next, and at the beginning of each of many names."""
    asked = dns.Question(7, b"web.example", name("web.example") + b"\0\1\0\1")
    start = 12 + len(asked.raw) + len(record(b"\0", 16, b""))
    chain = b"".join((0xC000 | (at - 2 if at > start else 12)).to_bytes(2, "big") for at in range(start, 8000, 2))
    last = (0xC000 | start + len(chain) - 2).to_bytes(2, "big")
    one = answer("web.example", record(b"\0", 16, chain), address(b"\xc0\x0c", WEB))
    assert dns.addresses(one, asked) == [(packed(WEB), 300)]
    many = Counted(answer("web.example", record(b"\0", 16, chain), *[address(last, WEB)] * 200))
    assert dns.addresses(many, asked) == []
    assert many.looked < 20_000


@pytest.mark.parametrize(("count", "leads"), [(10, True), (200, False)])
def test_aliases_of_aliases_come_to_an_end(count: int, leads: bool) -> None:
    """In whatever order they come."""
    asked = dns.Question(7, b"web.example", name("web.example") + b"\0\1\0\1")
    aliases = [alias("web.example", "0.x"), *(alias(f"{n}.x", f"{n + 1}.x") for n in range(count))]
    data = answer("web.example", address(f"{count}.x", WEB), *reversed(aliases))
    assert dns.addresses(data, asked) == [(packed(WEB), 300)] * leads


# -- what is refused is told


def test_who_may_not_is_told() -> None:
    """Linux gives up at once then, with "No route to host" or "Permission denied"."""
    for target, protocol, kind, by in ((WEB, ICMP, (3, 13), GATEWAY), (WEB6, ICMPV6, (1, 1), GATEWAY6)):
        for frame in (syn(target), datagram(target, b"x" * 2000)):
            reply = firewall().from_guest(frame, 0.0).reply
            assert reply is not None
            check_sums(reply)
            at = 34 if protocol == ICMP else 54
            assert reply[:12] == MAC + PEER
            assert (reply[at], reply[at + 1]) == kind
            assert reply[at - 32 : at - 16] == packed(by) if protocol == ICMPV6 else reply[26:30] == packed(by)
            assert frame[14:].startswith(reply[at + 8 :])
            assert len(reply) <= 14 + 1280


def test_errors_are_not_answered() -> None:
    for frame in (ip(ICMP, WEB, b"\3\1" + bytes(30)), ip(ICMPV6, WEB6, b"\1\1" + bytes(30))):
        assert firewall().from_guest(frame, 0.0) == Verdict(False)
    assert firewall().from_guest(ip(ICMP, WEB, b"\x08\0" + bytes(6)), 0.0).reply is not None


# -- hostile frames

ALLOWED = firewall("1.2.0.0/16", "2600::/32", "web.example")


@pytest.mark.parametrize(
    "change",
    [(14, 0x46), (14, 0x44), (14, 0x65), (20, 0x20), (21, 1), (20, 0x80), (16, 0xFF), (17, 3), (23, 47), (23, 58)],
)
def test_ipv4_that_can_be_understood_in_two_ways(change: tuple[int, int]) -> None:
    frame = bytearray(syn(WEB))
    assert passes(ALLOWED, bytes(frame))
    frame[change[0]] = change[1]
    assert not passes(ALLOWED, bytes(frame))


@pytest.mark.parametrize("change", [(14, 0x45), (18, 1), (20, 0), (20, 43), (20, 44), (20, 60), (20, 1), (20, 41)])
def test_ipv6_with_headers_of_more_kinds(change: tuple[int, int]) -> None:
    frame = bytearray(syn(WEB6))
    assert passes(ALLOWED, bytes(frame))
    frame[change[0]] = change[1]
    assert not passes(ALLOWED, bytes(frame))


def test_frames_of_other_kinds() -> None:
    inner = syn(WEB)
    for kind in (b"\x81\x00\x00\x01\x08\x00", b"\x88\xa8\x00\x01\x08\x00", b"\x88\x64", b"\x00\x2e", b""):
        assert not passes(ALLOWED, inner[:12] + kind + inner[14:])
    assert passes(ALLOWED, (PEER + MAC + b"\x08\x06").ljust(42, b"\0"))
    assert not passes(ALLOWED, PEER + MAC + b"\x08\x06")


def test_a_source_that_is_not_the_guests() -> None:
    assert not passes(ALLOWED, syn(WEB, source="10.0.2.16"))
    assert not passes(ALLOWED, syn(WEB6, source="2600::9"))


def test_neighbours_are_asked_for_and_nothing_else_goes_to_the_link() -> None:
    solicit = b"\x87\0" + bytes(22)
    assert passes(ALLOWED, ip(ICMPV6, "ff02::1:ff00:2", solicit, hops=255))
    assert passes(ALLOWED, ip(ICMPV6, GATEWAY6, solicit, "fe80::15", hops=255))
    assert not passes(ALLOWED, ip(ICMPV6, "ff02::1:ff00:2", solicit, hops=64))
    assert not passes(ALLOWED, ip(ICMPV6, "2a00::1", solicit, hops=255))
    assert not passes(ALLOWED, ip(ICMPV6, "ff02::1", b"\x86\0" + bytes(22), hops=255))  # a router's advertisement
    assert not passes(ALLOWED, ip(UDP, "ff02::fb", struct.pack(">HHHH", 5353, 5353, 9, 0) + b"x"))


@pytest.mark.parametrize(
    "frame",
    [
        syn(RESOLVER, 53),
        datagram(RESOLVER, query("web.example"), 54),
        datagram(RESOLVER, b"", 53),
        datagram(RESOLVER, query("web.example", flags=0x8100), 53),
        datagram(RESOLVER, query("web.example", flags=0x2900), 53),
        datagram(RESOLVER, query("web.example")[:-1], 53),
        datagram(RESOLVER, struct.pack(">HHHHHH", 7, 256, 2, 0, 0, 0) + (name("web.example") + b"\0\1\0\1") * 2, 53),
        datagram(RESOLVER, struct.pack(">HHHHHH", 7, 256, 1, 1, 0, 0) + name("web.example") + b"\0\1\0\1", 53),
        datagram(RESOLVER, struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\3web\xc0\x0c\0\1\0\1", 53),
        datagram(RESOLVER, struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\x0bweb.example\0\0\1\0\1", 53),
        datagram(RESOLVER, query("web.example").replace(b"\0\1\0\1", b"\0\1\0\3"), 53),
    ],
)
def test_what_is_no_question_to_the_resolver(frame: bytes) -> None:
    assert passes(ALLOWED, ask("web.example"))
    assert not passes(ALLOWED, frame)


BASES = [syn(WEB), syn(WEB6), syn(OTHER), datagram(WEB), datagram(WEB6), ask("web.example"), ask("evil.example")]
changes = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=4)


@given(frame=st.sampled_from(BASES), changes=changes, cut=st.integers(0, 120))
def test_nothing_passes_but_what_is_plainly_allowed(frame: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(frame)
    for at, value in changes:
        if at < len(data):
            data[at] = value
    data = data[: len(data) - cut] if cut < 40 else data
    passed, reply, _ = ALLOWED.from_guest(bytes(data), 0.0)
    assert reply is None or not passed
    if not passed or data[12:14] == b"\x08\x06":
        return
    if data[12:14] == b"\x08\x00":
        assert data[14] == 0x45
        assert data[20] & 0x3F == data[21] == 0
        assert data[23] in (1, 6, 17)
        assert bytes(data[30:32]) == b"\1\2" or (
            bytes(data[30:34]) == packed(RESOLVER) and b"\x03web\x07example\0" in data.lower()
        )
    else:
        assert data[12:14] == b"\x86\xdd"
        assert data[20] in (6, 17, 58)
        assert data[38:42] == packed("2600::")[:4] or data[20] == 58


@given(st.binary(max_size=200), st.booleans())
def test_bytes_of_any_kind_from_either_side(data: bytes, as_answer: bool) -> None:
    """Neither ends the filter."""
    wall = firewall("web.example")
    passes(wall, ask("web.example"))
    wall.from_guest(data, 0.0)
    wall.to_guest(answered(answer("web.example")[: 2 if as_answer else 29] + data), 0.0)
    wall.to_guest(data, 0.0)
    assert all(ipaddress.ip_address(found).is_global for found in wall._learned)


# -- the list itself


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "1.2.3",
        "1.2.3.4.5",
        "fe80::/200",
        "a b",
        "*",
        "*.*.x",
        "a..b",
        "-a",
        "http://x",
        "x/y",
        "",
        "ü" * 80,
    ],
)
def test_what_is_neither_network_nor_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"network\.allow"):
        Network(allow=(text,))


def test_names_are_taken_as_they_are_written() -> None:
    rules = Rules(["Web.Example.", "bücher.example", "_srv.x"])
    assert rules.permits_name(b"web.example")
    assert rules.permits_name(b"xn--bcher-kva.example")
    assert rules.permits_name(b"_srv.x")
    assert not rules.permits_name(b"example")
