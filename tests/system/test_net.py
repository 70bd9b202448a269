"""virtio-net in stock Debian guests, on a TAP of the nested host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from aiovmm import VM, EventKind, NetConfig, RebootPolicy, VMConfig
from aiovmm.devices.virtio.net import NetDevice
from aiovmm.devices.virtio.net import features as f
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import limit, prompt, reboot, shell, shell_status

HOST, GUEST = "10.9.0.1", "10.9.0.2"
NET = NetConfig(ip=HOST, mask="255.255.255.0")
SIZE = 64 << 20
UP = f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up"


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """64 MiB of noise."""
    path = tmp_path_factory.mktemp("net") / "blob"
    path.write_bytes(os.urandom(SIZE))
    yield path
    path.unlink()


def programs(*paths: str) -> dict[str, Path]:
    """Programs of the nested host with the libraries they need, for an initramfs."""
    files = {path: Path(path).resolve() for path in paths}
    for path in paths:
        for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True).stdout):
            files[library] = Path(library).resolve()
    return files


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An initramfs with more programs for each kernel release."""
    found = {}
    for release in RELEASES:
        found[release] = tmp_path_factory.mktemp("net") / f"{release}.cpio"
        files, modules = programs("/usr/bin/socat", "/usr/sbin/ethtool"), GUESTS / release / "modules"
        found[release].write_bytes(build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, files=files).data)
    return found


class NetGuests:
    """Configurations of guests with these programs."""

    def __init__(self, guests: Guests, tools: dict[str, Path]) -> None:
        self._guests = guests
        self._tools = tools

    def config(self, release: str = "6.1", **changes: object) -> VMConfig:
        config = self._guests.config(release, **changes)  # type: ignore[arg-type]
        return replace(config, payload=replace(config.payload, initramfs=self._tools[release]))


@pytest.fixture
def net_guests(guests: Guests, tools: dict[str, Path]) -> NetGuests:
    return NetGuests(guests, tools)


@asynccontextmanager
async def guest(
    guests: NetGuests, net: NetConfig, *, up: bool = True, **config: object
) -> AsyncIterator[tuple[VM, NetDevice]]:
    """A guest at its shell with an address, and its network device."""
    async with VM(guests.config(nets=(net,), **config)) as vm:  # type: ignore[arg-type]
        await vm.start()
        await prompt(vm)
        device = vm.device("net0")
        assert isinstance(device, NetDevice)
        if up:
            await shell(vm, UP)
        yield vm, device


async def run(*command: str, timeout: float = 60) -> str:
    """A command of the nested host; its output."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, output.decode()
    return output.decode()


async def ping_both_ways(vm: VM, size: int = 56) -> None:
    assert "3 packets received" in await shell(vm, f"ping -c 3 -i 0.2 -s {size} {HOST}")
    assert "3 received" in await run("ping", "-c", "3", "-i", "0.2", "-M", "do", "-s", str(size), GUEST)


def checksum(path: Path) -> str:
    """As md5sum prints it."""
    return hashlib.md5(path.read_bytes()).hexdigest()


class Packets(NamedTuple):
    """Of the direction that has the data, for the other has as many acknowledgements as the guest is slow."""

    received: int
    sent: int


async def tcp_both_ways(vm: VM, device: NetDevice, blob: Path, tmp_path: Path) -> Packets:
    """The blob to the guest and back, with checksums at all three places."""
    md5 = checksum(blob)
    before = device.counters.rx_packets
    async with listening(f"OPEN:{blob}", 7001, "-u"):
        assert md5 in await shell(vm, f"nc {HOST} 7001 > /tmp/blob; md5sum /tmp/blob", timeout=120)
    received = device.counters.rx_packets - before
    before = device.counters.tx_packets
    back = tmp_path / "back"
    async with listening(f"CREATE:{back}", 7002, "-U") as socat:
        await shell(vm, f"nc {HOST} 7002 < /tmp/blob; rm /tmp/blob", timeout=120)
        await asyncio.wait_for(socat.wait(), limit(30))
    assert checksum(back) == md5
    back.unlink()
    return Packets(received, device.counters.tx_packets - before)


@asynccontextmanager
async def listening(file: str, port: int, direction: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """socat between a file and one TCP connection to `port`."""
    server = f"TCP-LISTEN:{port},reuseaddr,bind={HOST}"
    socat = await asyncio.create_subprocess_exec("socat", "-b", "262144", direction, file, server)
    try:
        async with asyncio.timeout(limit(20)):
            while f":{port} " not in await run("ss", "-tln"):  # noqa: ASYNC110 - another program's doing
                await asyncio.sleep(0.05)
        yield socat
    finally:
        if socat.returncode is None:
            socat.kill()
            await socat.wait()


@contextmanager
def udp_echo(port: int) -> Iterator[list[int]]:
    """Sends every datagram back, from the running loop; sizes seen."""
    sizes: list[int] = []
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, port))
    sock.setblocking(False)
    loop = asyncio.get_running_loop()

    def echo() -> None:
        data, sender = sock.recvfrom(65536)
        sizes.append(len(data))
        sock.sendto(data, sender)

    loop.add_reader(sock, echo)
    try:
        yield sizes
    finally:
        loop.remove_reader(sock)
        sock.close()


async def udp_both_ways(vm: VM, *sizes: int) -> None:
    with udp_echo(7003) as seen:
        for size in sizes:
            await shell(vm, f"dd if=/dev/urandom of=/tmp/sent bs={size} count=1 2>/dev/null")
            await shell(vm, f"socat -t 2 -b 65536 - UDP:{HOST}:7003 < /tmp/sent > /tmp/back")
            await shell(vm, "cmp /tmp/sent /tmp/back")
    assert seen == list(sizes)


@pytest.mark.parametrize("release", RELEASES)
async def test_traffic_both_ways(net_guests: NetGuests, release: str, blob: Path, tmp_path: Path) -> None:
    async with guest(net_guests, replace(NET, mac="2e:00:00:00:00:07"), release=release, memory=512) as (vm, device):
        assert (await shell(vm, "cat /sys/class/net/eth0/address")).strip() == "2e:00:00:00:00:07"
        lost = device.counters.rx_dropped  # what the host's IPv6 says into a link that no driver serves yet
        await ping_both_ways(vm)
        await ping_both_ways(vm, 1472)
        await udp_both_ways(vm, 1, 1000, 1472)
        packets = await tcp_both_ways(vm, device, blob, tmp_path)
        c = device.counters
        assert c.rx_bytes > SIZE < c.tx_bytes
        assert (c.tx_errors, c.rx_dropped) == (0, lost)
        assert packets.sent < SIZE // 1448  # segmentation was left to the host
        await link_down_and_up(vm, device)


async def link_down_and_up(vm: VM, device: NetDevice) -> None:
    device.link = False
    await carrier(vm, 0)
    assert (await shell_status(vm, f"ping -c 1 -W 1 {HOST}"))[1] != 0
    device.link = True
    await carrier(vm, 1)
    # Linux drops what it sends until it has noticed for itself, up to a second later.
    await shell(vm, f"until ping -c 1 -W 1 {HOST}; do :; done")
    await ping_both_ways(vm)


async def carrier(vm: VM, wanted: int) -> None:
    loop = f"until [ $(cat /sys/class/net/eth0/carrier) = {wanted} ]; do sleep 0.1; done"
    await shell(vm, loop, timeout=20)


async def interrupts(vm: VM) -> dict[str, int]:
    """How many each vector of eth0's queues has had, on all CPUs."""
    device = (await shell(vm, "basename $(readlink -f /sys/class/net/eth0/device)")).strip()
    lines = (await shell(vm, f"grep -E '{device}-(in|out)put' /proc/interrupts")).splitlines()
    words = [line.split() for line in lines]
    return {line[-1].partition("-")[2]: sum(int(n) for n in line[1:] if n.isdecimal()) for line in words}


async def test_jumbo_frames_on_two_queue_pairs(net_guests: NetGuests, blob: Path, tmp_path: Path) -> None:
    net = replace(NET, mtu=9000, num_queues=4)
    async with guest(net_guests, net, release="6.12", memory=512, cpus=2) as (vm, device):
        assert (await shell(vm, "cat /sys/class/net/eth0/mtu")).strip() == "9000"
        assert device.active_pairs == 2
        lost = device.counters.rx_dropped
        assert len((await shell(vm, "ls -d /sys/class/net/eth0/queues/*")).split()) == 4
        await ping_both_ways(vm, 8972)
        await udp_both_ways(vm, 8000, 8972)  # the last is as large as the MTU of 9000 lets it be
        await tcp_both_ways(vm, device, blob, tmp_path)
        for port in range(7100, 7116):  # flows that the kernels spread over the queues
            await run("socat", "-u", "OPEN:/dev/null", f"UDP:{GUEST}:{port}")
        await shell(vm, f"for i in 1 2 3 4 5 6 7 8; do ping -c 1 -s 1000 {HOST} >/dev/null & done; wait")
        seen = await interrupts(vm)
        assert set(seen) == {"input.0", "input.1", "output.0", "output.1"}
        assert all(seen.values()), seen
        second = device.backend.ports[1].counters
        assert second.tx_packets > 0
        assert second.rx_packets > 0
        assert (device.counters.tx_errors, device.counters.rx_dropped) == (0, lost)


async def test_without_offloads(net_guests: NetGuests, blob: Path, tmp_path: Path) -> None:
    net = replace(NET, offload_csum=False, offload_tso=False, offload_ufo=False)
    async with guest(net_guests, net, memory=512) as (vm, device):
        bits = (await shell(vm, "cat /sys/class/net/eth0/device/features")).strip()
        assert not int(bits[::-1], 2) & (f.CSUM | f.OFFLOADS | f.HOST_TSO4)
        await ping_both_ways(vm)
        assert (await tcp_both_ways(vm, device, blob, tmp_path)).sent > SIZE // 1500
        assert device.counters.tx_errors == 0


async def test_offloads_switched_at_run_time(net_guests: NetGuests, blob: Path, tmp_path: Path) -> None:
    async with guest(net_guests, NET, memory=512) as (vm, device):
        assert "tcp-segmentation-offload: on" in await shell(vm, "ethtool -k eth0")
        assert (await tcp_both_ways(vm, device, blob, tmp_path)).received < SIZE // 1448
        await shell(vm, "ethtool -K eth0 rx-gro-hw off tso off gso off tx off")  # rx-gro-hw: CTRL_GUEST_OFFLOADS
        assert (await tcp_both_ways(vm, device, blob, tmp_path)).received > SIZE // 1500
        assert device.counters.tx_errors == 0


async def test_an_address_by_dhcp(net_guests: NetGuests, tmp_path: Path) -> None:
    net = replace(NET, tap="dhcp0")
    async with guest(net_guests, net, up=False) as (vm, _):
        lease = tmp_path / "leases"
        command = f"dnsmasq -d -p 0 -i dhcp0 --bind-interfaces -u root --dhcp-range=10.9.0.50,10.9.0.60 -l {lease}"
        server = await asyncio.create_subprocess_exec(*command.split(), stderr=subprocess.PIPE)
        try:
            script = r'#!/bin/sh\n[ "$1" = bound ] && ip address add $ip/$mask dev $interface\nexit 0\n'
            await shell(vm, f"printf '{script}' > /tmp/script; chmod +x /tmp/script; ip link set eth0 up")
            await shell(vm, "udhcpc -i eth0 -n -q -s /tmp/script")
            assert re.search(r"inet 10\.9\.0\.(5\d|60)/24", await shell(vm, "ip address show dev eth0"))
            assert "3 packets received" in await shell(vm, f"ping -c 3 -i 0.2 {HOST}")
        finally:
            server.kill()
            await server.wait()


async def test_the_driver_is_unloaded_and_loaded_under_load_and_the_guest_reboots(net_guests: NetGuests) -> None:
    async with guest(net_guests, NET, on_reboot=RebootPolicy.RESTART) as (vm, device):
        await run("ip", "neighbour", "replace", GUEST, "lladdr", device.mac.hex(":"), "dev", "aiovmm0")
        flood = await asyncio.create_subprocess_exec("ping", "-f", "-q", GUEST, stdout=subprocess.DEVNULL)
        try:
            again = f"rmmod virtio_net && modprobe virtio_net && {UP} && ping -c 1 -W 5 {HOST} >/dev/null"
            await shell(vm, f"(for i in $(seq 20); do {again} || exit 1; done)", timeout=150)
            assert device.counters.tx_errors == 0
            for _ in range(3):
                await reboot_under_flood(vm, device)
                assert flood.returncode is None, "it has run all the time"
        finally:
            if flood.returncode is None:
                flood.kill()
            await flood.wait()
        await ping_both_ways(vm)
        await vm.kill()
        assert EventKind.DEVICE_ERROR not in [event.kind async for event in vm.events(from_start=True)]


async def reboot_under_flood(vm: VM, device: NetDevice) -> None:
    await reboot(vm, b"reboot")
    await vm.serial.expect(rb"aiovmm: init", timeout=limit(60))  # a prompt before it is the first life's
    await prompt(vm)
    assert vm.device("net0") is device
    before = device.counters
    await shell(vm, UP)
    assert "3 packets received" in await shell(vm, f"ping -c 3 -i 0.2 {HOST}")
    assert device.counters.rx_packets - before.rx_packets > 3, "the flood comes in again"
