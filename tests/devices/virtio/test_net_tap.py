"""A real TAP in a network namespace, with the host's own network stack at its other end."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.config import NetConfig
from aiovmm.devices.virtio.net import HostAddress, NetDevice, TapBackend, tun
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.configured import make_net
from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime import crew
from aiovmm.runtime.tasks import in_thread
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio import netns
from tests.devices.virtio.net_guest import CONTROL_ERR, CONTROL_OK, Header, NetGuest, ready, until
from tests.limits import HANGS

HOST = "10.77.0.1"
GUEST = "10.77.0.2"
MAC = bytes.fromhex("2e0000000042")
ADDRESS = HostAddress(HOST, "255.255.255.0")
_UDP_SEGMENT = 103  # linux/udp.h


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with netns.namespace():
        yield


class Stack:
    """As much of a guest's network stack as answers ARP and pings, and takes and sends UDP."""

    def __init__(self, guest: NetGuest) -> None:
        self.guest = guest
        self.host_mac = bytes(6)
        self.udp: asyncio.Queue[tuple[Header, bytes]] = asyncio.Queue()

    async def run(self) -> None:
        self.guest.fill()
        while True:
            packet = await self.guest.receive(timeout=HANGS)
            frame = packet.frame
            if frame[12:14] == b"\x08\x06" and frame[38:42] == socket.inet_aton(GUEST):
                self.host_mac = frame[6:12]
                reply = b"\0\1\x08\0\6\4\0\2" + MAC + socket.inet_aton(GUEST) + frame[22:32]
                await self.guest.send(frame[6:12] + MAC + b"\x08\x06" + reply)
            elif frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 8:
                await self.guest.send(self._pong(frame))
            elif frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[30:34] == socket.inet_aton(GUEST):
                self.udp.put_nowait((packet.header, frame[42:]))

    @staticmethod
    def _pong(frame: bytes) -> bytes:
        icmp = b"\0\0\0\0" + frame[38:]
        ip = frame[14:26] + frame[30:34] + frame[26:30]
        return frame[6:12] + MAC + b"\x08\0" + ip + icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]

    def datagram(self, port: int, payload: bytes) -> bytes:
        """A frame to UDP `port` of the host. The UDP checksum is left to the host: it holds the pseudo header's alone."""
        length = 8 + len(payload)
        addresses = socket.inet_aton(GUEST) + socket.inet_aton(HOST)
        pseudo = ~checksum(addresses + struct.pack("!BBH", 0, 17, length)) & 0xFFFF
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0)
        ip += addresses
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        return self.host_mac + MAC + b"\x08\0" + ip + struct.pack("!HHHH", 7777, port, length, pseudo) + payload


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2])) + (
        data[-1] << 8 if len(data) % 2 else 0
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~int(total) & 0xFFFF


async def ping(*arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(
        "ping", "-c", "3", "-i", "0.05", "-W", "5", *arguments, GUEST, stdout=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


async def test_the_host_pings_a_guest_on_a_tap_that_was_made_for_it() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        assert netns.links() == ["aiovmm0"]
        stack = Stack(NetGuest(harness))
        task = asyncio.ensure_future(stack.run())
        assert await ping() == 0
        assert await ping("-s", "1400") == 0
        task.cancel()
        assert device.counters.tx_errors == device.counters.tx_dropped == 0
    await until(lambda: not netns.links())


async def test_what_waited_for_no_driver_is_lost_and_counted() -> None:
    """It may have been left for offloads that an earlier driver knew."""
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    await device.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(5):
            sock.sendto(b"early", ("10.77.0.255", 7777))
        async with Harness(device) as harness:
            await ready(device)
            assert device.counters.rx_dropped == 5
            guest = NetGuest(harness)
            guest.fill()
            sock.sendto(b"late", ("10.77.0.255", 7777))
            assert (await guest.receive()).frame.endswith(b"late")


async def test_checksums_are_left_to_the_other_side_both_ways() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        stack = Stack(NetGuest(harness))
        task = asyncio.ensure_future(stack.run())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((HOST, 7000))
            sock.setblocking(False)
            sock.sendto(b"from the host", (GUEST, 7777))
            header, payload = await asyncio.wait_for(stack.udp.get(), HANGS)
            assert payload == b"from the host"
            assert (header.flags, header.csum_start, header.csum_offset) == (1, 34, 6)
            await stack.guest.send(
                stack.datagram(7000, b"from the guest"), Header(flags=1, csum_start=34, csum_offset=6)
            )
            await until(lambda: received(sock) == b"from the guest")
        task.cancel()


async def test_a_guest_that_takes_no_checksums_gets_finished_packets() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device, features=f.MAC | f.STATUS | f.MRG_RXBUF | 1 << 32) as harness:
        await ready(device)
        stack = Stack(NetGuest(harness))
        task = asyncio.ensure_future(stack.run())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"payload", (GUEST, 7777))
            header, payload = await asyncio.wait_for(stack.udp.get(), HANGS)
        task.cancel()
        assert payload == b"payload"
        assert header == Header(num_buffers=1)


async def test_offloads_are_switched_off_at_run_time() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        stack = Stack(NetGuest(harness))
        task = asyncio.ensure_future(stack.run())
        assert await harness.request(2, [b"\5\0" + bytes(8)], [1]) == CONTROL_OK
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"payload", (GUEST, 7777))
            header, _ = await asyncio.wait_for(stack.udp.get(), HANGS)
        task.cancel()
        assert header.flags == 0


async def test_udp_is_segmented_by_the_host_and_left_whole_for_the_guest() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    await device.open()
    if not device.features & f.HOST_USO:
        await device.close()
        pytest.skip("the host's kernel has no USO for TAPs (Linux 6.2)")
    async with Harness(device) as harness:
        await ready(device)
        stack = Stack(NetGuest(harness))
        task = asyncio.ensure_future(stack.run())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((HOST, 7000))
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 1000)
            sock.sendto(bytes(3500), (GUEST, 7777))
            header, payload = await asyncio.wait_for(stack.udp.get(), HANGS)
            assert len(payload) == 3500
            assert (header.gso_type, header.gso_size) == (5, 1000)
            frame = stack.datagram(7000, bytes(2500))
            await stack.guest.send(frame, Header(1, 5, 42, 1000, 34, 6))
            sizes: list[int] = []

            def whole() -> bool:
                sizes.append(len(received(sock, 5000)))
                return sum(sizes) == 2500

            await until(whole)
            assert [size for size in sizes if size] == [1000, 1000, 500]
        task.cancel()


def received(sock: socket.socket, most: int = 100) -> bytes:
    try:
        return sock.recv(most)
    except BlockingIOError:
        return b""


async def test_headers_that_the_kernel_refuses_are_counted() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        guest = NetGuest(harness)
        await guest.send(bytes(60), Header(flags=1, csum_start=5000, csum_offset=16))
        await guest.send(bytes(60), Header(flags=1, gso_type=1, gso_size=0, csum_start=34, csum_offset=16))
        await guest.send(bytes(60))
        c = device.counters
        assert (c.tx_errors, c.tx_packets) == (2, 1)


async def test_an_interface_that_is_down_loses_frames_and_comes_back() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        guest = NetGuest(harness)
        netns.ip("link set aiovmm0 down")
        await guest.send(bytes(60))
        assert device.counters.tx_dropped == 1
        netns.ip("link set aiovmm0 up")
        await guest.send(bytes(60))
        assert device.counters.tx_packets == 1


async def test_the_carrier_of_the_host_follows_the_link() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device):
        await ready(device)
        assert "NO-CARRIER" not in netns.ip("link show aiovmm0")
        device.link = False
        await until(lambda: "NO-CARRIER" in netns.ip("link show aiovmm0"))
        device.link = True
        await until(lambda: "NO-CARRIER" not in netns.ip("link show aiovmm0"))


async def test_a_tap_that_is_removed_takes_the_link_down_and_nothing_else() -> None:
    device = NetDevice(TapBackend(host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        guest = NetGuest(harness)
        guest.fill()
        netns.ip("link del aiovmm0")
        await until(lambda: not device.link)
        await guest.send(bytes(60))
        await harness.reset()
        await harness.start()
        await ready(device)
        await NetGuest(harness).send(bytes(60))


async def test_the_mtu_is_set_and_told() -> None:
    device = NetDevice(TapBackend(mtu=9000), mac=MAC)
    async with Harness(device):
        assert "mtu 9000" in netns.ip("link show aiovmm0")
        assert device.mtu == 9000
    netns.ip("tuntap add jumbo mode tap")
    netns.ip("link set jumbo mtu 4000")
    device = NetDevice(TapBackend("jumbo"), mac=MAC)
    await device.open()
    assert device.mtu == 4000
    assert device.features & f.MTU
    await device.close()


async def test_addresses_of_the_host() -> None:
    backend = TapBackend("named0", host=HostAddress("10.1.2.3", "255.255.0.0", bytes.fromhex("2e0000000099")))
    await backend.open()
    shown = netns.ip("address show named0")
    assert "10.1.2.3/16" in shown
    assert "2e:00:00:00:00:99" in shown
    assert "UP" in shown
    await backend.close()


@pytest.mark.parametrize("name", [None, "new0", "kept0"])
async def test_the_hosts_end_of_what_is_made_is_called_after_the_guests(name: str | None) -> None:
    """So a guest that goes on elsewhere, or begins anew, knows its host. What others made keeps its address."""
    netns.ip("tuntap add kept0 mode tap")
    netns.ip("link set kept0 address 2e:00:00:00:00:77")
    expected = "2e:00:00:00:00:77" if name == "kept0" else "fe:11:22:33:44:55"
    for config, mac in (
        (NetConfig(tap=name, mac="2e:11:22:33:44:55"), expected),
        (NetConfig(tap=name, mac="2e:11:22:33:44:55", host_mac="2e:00:00:00:00:99"), "2e:00:00:00:00:99"),
    ):
        backend = make_net(config).backend
        assert isinstance(backend, TapBackend)
        for _ in range(2):
            await backend.open()
            assert f"link/ether {mac} " in netns.ip(f"link show {backend.name}")
            await backend.close()


@pytest.mark.parametrize(
    ("ip", "mask", "shown"),
    [
        ("10.1.2.3", "24", "inet 10.1.2.3/24 "),
        ("10.1.2.3", "255.255.255.252", "inet 10.1.2.3/30 "),
        ("10.1.2.3", "0.0.0.0", "inet 10.1.2.3/0 "),
        ("fd00:77::1", "ffff:ffff:ffff:ffff::", "inet6 fd00:77::1/64 "),
        ("fd00:77::1", "128", "inet6 fd00:77::1/128 "),
    ],
)
async def test_addresses_and_masks_of_every_form(ip: str, mask: str, shown: str) -> None:
    netns.ipv6(on=True)
    netns.ip("tuntap add kept0 mode tap")
    for _ in range(2):  # an IPv6 address that is there already is as good
        backend = TapBackend("kept0", host=HostAddress(ip, mask))
        await backend.open()
        assert shown in netns.ip("address show kept0")
        await backend.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ip=st.one_of(st.ip_addresses().map(str), st.sampled_from(["255.255.255.255", "127.0.0.1", "::1", "240.0.0.1"])),
    length=st.integers(0, 128),
    spelled=st.booleans(),
)
def test_what_the_configuration_takes_is_what_the_interface_gets(ip: str, length: int, spelled: bool) -> None:
    """Or the host refuses it by an error of its own; never something else."""
    width = 128 if ":" in ip else 32
    length = min(length, width)
    mask = str(ip_address(type(ip_address(ip))((1 << width) - (1 << width - length)))) if spelled else str(length)
    try:
        config = NetConfig(tap="any0", ip=ip, mask=mask)
    except ConfigError:
        assert ip_address(ip).is_multicast or ip_address(ip).is_unspecified or ip == "255.255.255.255"
        return

    netns.ipv6(on=True)

    async def configure() -> str:
        backend = TapBackend("any0", host=HostAddress(config.ip, config.mask))
        await backend.open()
        try:
            return netns.ip("address show any0")
        finally:
            await backend.close()

    with suppress(HostError):
        assert ip_interface(f"{ip}/{length}") in addresses(asyncio.run(configure()))


def addresses(shown: str) -> list[IPv4Interface | IPv6Interface]:
    """Of what `ip address` shows. Python and it do not spell each address in the same way."""
    return [ip_interface(text) for text in re.findall(r" inet6? (\S+/\d+) ", shown)]


async def test_a_persistent_tap_stays() -> None:
    netns.ip("tuntap add keep0 mode tap")
    backend = TapBackend("keep0")
    await backend.open()
    await backend.close()
    assert netns.links() == ["keep0"]


async def test_a_tap_made_for_several_queues_serves_one_pair() -> None:
    netns.ip("tuntap add many0 mode tap multi_queue")
    backend = TapBackend("many0")
    await backend.open()
    assert len(backend.ports) == 1
    await backend.close()


async def test_by_descriptor() -> None:
    fd = tun.open_tun()
    tun.attach(fd, "given0", multi_queue=False)
    netns.ip(f"address add {HOST}/24 dev given0")
    netns.ip("link set given0 up")
    device = make_net(NetConfig(fd=(fd,), mac=MAC.hex(":")))
    await device.open()
    os.close(fd)
    async with Harness(device) as harness:
        await ready(device)
        task = asyncio.ensure_future(Stack(NetGuest(harness)).run())
        assert await ping() == 0
        task.cancel()


async def test_a_descriptor_that_is_no_tap_is_refused() -> None:
    for fd in (os.open("/dev/null", os.O_RDWR), tun.open_tun()):
        with pytest.raises(ConfigError, match=r"net\.fd"):
            await TapBackend(fds=[fd]).open()
        os.close(fd)


async def test_descriptors_of_two_taps_are_no_card() -> None:
    fds = [tun.open_tun(), tun.open_tun()]
    for fd, name in zip(fds, ("one0", "two0"), strict=True):
        tun.attach(fd, name, multi_queue=True)
    with pytest.raises(ConfigError, match=r"net\.fd: has queues of two TAPs, one0 and two0"):
        await TapBackend(fds=fds).open()
    for fd in fds:
        os.close(fd)


# -- several queues


async def test_pairs_are_switched_by_the_control_queue() -> None:
    device = NetDevice(TapBackend(pairs=2, host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        assert device.read_config(8, 2) == b"\2\0"
        assert device.active_pairs == 1
        guests = [NetGuest(harness, pair=0), NetGuest(harness, pair=1)]
        for pairs in (2, 1, 2):
            assert await harness.request(4, [b"\4\0" + struct.pack("<H", pairs)], [1]) == CONTROL_OK
            assert device.active_pairs == pairs
        for count in (0, 3, 0x8001):
            assert await harness.request(4, [b"\4\0" + struct.pack("<H", count)], [1]) == CONTROL_ERR
        stacks = [Stack(guest) for guest in guests]
        tasks = [asyncio.ensure_future(stack.run()) for stack in stacks]
        assert await ping() == 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for port in range(20000, 20064):  # flows spread over the queues
                sock.sendto(b"x", (GUEST, port))
        await until(lambda: sum(stack.udp.qsize() for stack in stacks) == 64)
        assert all(stack.udp.qsize() for stack in stacks)
        for task in tasks:
            task.cancel()


async def test_a_driver_without_multiqueue_has_its_control_queue_after_the_first_pair() -> None:
    device = NetDevice(TapBackend(pairs=2, host=ADDRESS), mac=MAC)
    everything = device.features & ~f.MQ
    async with Harness(device, features=everything | 1 << 32) as harness:
        await ready(device)
        assert await harness.request(2, [b"\5\0" + bytes(8)], [1]) == CONTROL_OK
        assert await harness.request(2, [b"\4\0\2\0"], [1]) == CONTROL_ERR
        task = asyncio.ensure_future(Stack(NetGuest(harness)).run())
        assert await ping() == 0
        task.cancel()


async def test_of_queues_that_a_driver_switches_each_has_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and also where a driver that used many is gone: the kernel takes its time for each."""
    turn, turns, set_queue = 0, [], tun.set_queue
    loop = asyncio.get_running_loop()

    def tick() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(tick)

    def noted(fd: int, attached: bool) -> None:
        turns.append(turn)
        set_queue(fd, attached)

    device = NetDevice(TapBackend(pairs=8, host=ADDRESS), mac=MAC)
    monkeypatch.setattr(tun, "set_queue", noted)
    async with Harness(device) as harness:
        tick()
        await ready(device)
        for pairs in (8, 2, 8):
            assert await harness.request(16, [b"\4\0" + struct.pack("<H", pairs)], [1]) == CONTROL_OK
        await harness.reset()
        await harness.start()
        await ready(device)
    assert len(turns) >= 7 + 6 + 6 + 7
    assert len(set(turns)) == len(turns)


async def test_a_new_driver_starts_with_one_pair() -> None:
    device = NetDevice(TapBackend(pairs=2, host=ADDRESS), mac=MAC)
    async with Harness(device) as harness:
        await ready(device)
        assert await harness.request(4, [b"\4\0\2\0"], [1]) == CONTROL_OK
        for _ in range(50):
            await harness.reset()
            await harness.start()
            await ready(device)
        assert device.active_pairs == 1
        task = asyncio.ensure_future(Stack(NetGuest(harness)).run())
        assert await ping() == 0
        task.cancel()


# -- refusals with a remedy


async def refused(backend: TapBackend) -> HostError:
    with pytest.raises(HostError) as caught:
        await backend.open()
    return caught.value


async def test_a_tap_that_is_in_use() -> None:
    first = TapBackend("busy0")
    await first.open()
    error = await refused(TapBackend("busy0"))
    assert error.errno == errno.EBUSY
    assert "another program" in str(error)
    await first.close()


async def test_a_tap_of_one_queue_is_asked_for_two() -> None:
    netns.ip("tuntap add one0 mode tap")
    assert "multi_queue" in str(await refused(TapBackend("one0", pairs=2)))


async def test_an_interface_that_is_no_tap() -> None:
    netns.ip("link add veth0 type veth peer name veth1")
    assert "is no TAP" in str(await refused(TapBackend("veth0")))


async def test_no_tun_device_and_no_right_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    monkeypatch.setattr(tun, "_DEVICE", str(tmp_path / "tun"))  # type: ignore[operator]
    assert "modprobe tun" in str(await refused(TapBackend()))


async def test_no_privilege() -> None:
    with netns.unprivileged():
        error = await refused(TapBackend("theirs0"))
    assert error.errno in (errno.EPERM, errno.EACCES)
    assert "CAP_NET_ADMIN" in str(error) or "be root" in str(error)


def test_names_that_are_too_long() -> None:
    with pytest.raises(ConfigError, match="15 bytes"):
        TapBackend("a-name-of-16-chr")


async def test_nothing_stays_open() -> None:
    before = None
    for _ in range(5):
        device = NetDevice(TapBackend(pairs=2, host=ADDRESS))
        async with Harness(device) as harness:
            await ready(device)
            assert await harness.request(4, [b"\4\0\2\0"], [1]) == CONTROL_OK
        now = sorted(os.listdir("/proc/self/fd"))
        before = before or now
        assert now == before
    with pytest.raises(HostError):
        await TapBackend("lo").open()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_it_is_opened_in_a_thread_that_is_in_the_same_namespace(
    elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else in the loop's: other threads may have been started before the loop's went into its namespace."""
    threads: list[int] = []
    attach = tun.attach

    def noted(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.get_ident())
        return attach(*args, **kwargs)

    monkeypatch.setattr(tun, "attach", noted)
    monkeypatch.setattr(crew, "_idle", [])
    await in_thread("one that is there", threading.get_ident)
    with netns.namespace() if elsewhere else nullcontext():
        before = netns.links()
        tap = TapBackend(host=ADDRESS)
        await tap.open()
        assert netns.links() == [*before, tap.name]
        await tap.close()
        assert netns.links() == before
    assert [thread == threading.get_ident() for thread in threads] == [elsewhere]
