"""The filter: one frame after the other, each way, and what it remembers between them. Pure; time is given, in seconds.

                         question for an allowed name, from the guest
      pending  ◄──────────────────────────────────────────────────────
         │ its answer, from the name server that was asked
         ▼
      learned: addresses, for as long as the answer says, and while they are in use

Whatever it remembers is bounded: a guest that fills it loses what it has learned, and gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from aiovmm.sandboxes.firewall import dns
from aiovmm.sandboxes.firewall.packet import ARP, ICMPV6, TCP, UDP, Packet, answer, dissect, prohibited
from aiovmm.sandboxes.firewall.rules import Rules, spellings
from aiovmm.sandboxes.firewall.streams import Asked, Streams

__all__ = ["Firewall", "Verdict"]

_PORT = 53
_PATIENCE = 10.0  # seconds in which an answer counts
_LEAST_LEARNED, _MOST_LEARNED, _IN_USE = 60.0, 86400.0, 600.0  # seconds that an address is kept, and after it was used
_SURE = 2.0  # seconds that what was found out of an address is not looked at again
_MOST = 4096  # entries of each table
_RESERVED_ARP = 42  # bytes
_NEIGHBOURS = (133, 135, 136)  # router and neighbour solicitation, neighbour advertisement
_LINK, _GROUP = b"\xfe\x80", b"\xff\x02"


class Verdict(NamedTuple):
    """Whether a frame goes on, and if not what its sender is told, if anything: `reply` where it is convenient, `frames` in any
    case."""

    passes: bool
    reply: bytes | None = None
    frames: Sequence[bytes] = ()


_PASS, _DROP = Verdict(True), Verdict(False)


class Firewall:
    """`guest`, `gateways`, `resolvers`: addresses as text, one of IPv4 and one of IPv6. `is_own(address)`: whether it is one of
    this host's, asked unless `host`, with which the guest reaches the host's services at the gateways' addresses, too. Questions
    by TCP are answered by `answered`: who has the filter asks what is in `streams.asked`."""

    def __init__(
        self,
        rules: Rules,
        *,
        guest: Sequence[str],
        gateways: Sequence[str],
        resolvers: Sequence[str],
        is_own: Callable[[bytes], bool],
        host: bool = False,
    ) -> None:
        self._rules = rules
        self._guest = {ip_address(text).packed for text in guest}
        self._gateways = {len(packed): packed for packed in (ip_address(text).packed for text in gateways)}
        self._resolvers = {ip_address(text).packed for text in resolvers}
        self._is_own = is_own
        self._host = host
        self._pending: dict[tuple[bytes, int, int], tuple[dns.Question, float]] = {}
        self._learned: dict[bytes, float] = {}
        self._known: dict[bytes, tuple[bool, float]] = {}
        self.streams = Streams(rules.permits_name)
        self.dropped = 0

    def from_guest(self, frame: bytes, now: float) -> Verdict:
        """A frame on its way out."""
        if frame[12:14] == ARP:  # it goes no further than passt
            verdict = _PASS if len(frame) >= _RESERVED_ARP else _DROP
        else:
            packet = dissect(frame)
            verdict = _DROP if packet is None else self._judge(packet, now)
        self.dropped += not verdict.passes
        return verdict

    def to_guest(self, frame: bytes, now: float) -> Verdict:
        """A frame of passt's, which sends nothing but to whom the guest has spoken."""
        packet = dissect(frame)
        if packet is not None and packet.protocol == UDP and packet.source in self._resolvers:
            self._hear(packet, now)
        return _PASS

    def _judge(self, packet: Packet, now: float) -> Verdict:
        if packet.protocol == ICMPV6 and packet.payload[0] in _NEIGHBOURS:
            near = packet.target[:2] in (_LINK, _GROUP) or packet.target in self._resolvers
            return _PASS if near and packet.hops == 255 else _DROP
        if packet.target[:2] == _GROUP or packet.target[0] == 0xE0:  # what systems tell all who may hear
            return _DROP
        if self._host and packet.target in self._gateways.values():
            return _PASS
        if packet.source not in self._guest:
            return _DROP
        if packet.target in self._resolvers:
            return self._ask(packet, now)
        return _PASS if self._reaches(packet.target, now) else self._refuse(packet)

    def _refuse(self, packet: Packet) -> Verdict:
        return Verdict(False, prohibited(packet, self._gateways[len(packet.source)]))

    # -- addresses

    def _reaches(self, address: bytes, now: float) -> bool:
        yes, until = self._known.get(address, (False, -1.0))
        if now < until:
            return yes
        yes = self._allows(address, now) and (self._host or not any(map(self._is_own, spellings(address))))
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[address] = yes, now + _SURE
        return yes

    def _allows(self, address: bytes, now: float) -> bool:
        if self._rules.permits(address):
            return True
        until = self._learned.get(address, -1.0)
        if now >= until:
            self._learned.pop(address, None)
            return False
        self._keep(address, max(until, now + _IN_USE))
        return True

    # -- names

    def _ask(self, packet: Packet, now: float) -> Verdict:
        if packet.protocol not in (UDP, TCP) or packet.ports[1] != _PORT:
            return self._refuse(packet)
        if packet.protocol == TCP:
            return Verdict(False, frames=self.streams.received(packet, now))
        asked = dns.question(packet.payload[8:])
        if asked is None:
            return self._refuse(packet)
        if not self._rules.permits_name(asked.name):
            return Verdict(False, answer(packet, dns.refusal(asked)))
        if len(self._pending) >= _MOST:
            del self._pending[next(iter(self._pending))]
        self._pending[packet.target, packet.ports[0], asked.id] = asked, now + _PATIENCE
        return _PASS

    def _hear(self, packet: Packet, now: float) -> None:
        source, target = packet.ports
        data = packet.payload[8:]
        asked, until = self._pending.pop((packet.source, target, int.from_bytes(data[:2], "big")), (None, 0.0))
        if asked is not None and source == _PORT and now < until:
            self._learn(data, asked, now)

    def answered(self, asked: Asked, message: bytes | None, now: float) -> list[bytes]:
        """Frames for the guest with the answer to a question by TCP, of the name servers; None is that there is none."""
        if message is not None:
            self._learn(message, asked.question, now)
        return self.streams.answer(asked, message)

    def _learn(self, answer: bytes, asked: dns.Question, now: float) -> None:
        for address, seconds in dns.addresses(answer, asked):
            if self._rules.learns(address):
                until = now + min(max(seconds, _LEAST_LEARNED), _MOST_LEARNED)
                self._keep(address, max(until, self._learned.get(address, 0.0)))
                self._known.pop(address, None)

    def _keep(self, address: bytes, until: float) -> None:
        """What was longest neither told nor used makes room."""
        self._learned.pop(address, None)
        if len(self._learned) >= _MOST:
            del self._learned[next(iter(self._learned))]
        self._learned[address] = until
