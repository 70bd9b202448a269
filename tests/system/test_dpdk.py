"""vhost-user-net served by DPDK's testpmd, which passes frames on between the guest's queues and a TAP of the host's."""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path

from aiovmm import VM, EventKind, NetConfig
from aiovmm.devices.virtio.vhost_user import VhostUserDevice
from tests.system.conftest import Guests
from tests.system.daemon import Daemon, until
from tests.system.guest import prompt, shell
from tests.system.traffic import transfer

HOST, GUEST, TAP = "192.168.79.1", "192.168.79.2", "dpdktap"
MB = 1 << 20

EAL = (
    *("--lcores", "0@0-1,1@0-1"),  # one for commands, one that polls; both float
    *("--no-huge", "--no-shconf", "-m", "256"),
    *("--no-pci", "--no-telemetry", "--log-level", "lib.eal:error"),
)
TESTPMD = ("-i", "--auto-start", "--forward-mode=io", "--total-num-mbufs=4096", "--no-mlockall")


def forwarder(path: Path) -> Daemon:
    # One MAC address for every start, or the guest would send to the last one's until it asks again.
    devices = (f"--vdev=net_vhost0,iface={path}", f"--vdev=net_tap0,iface={TAP},mac=fixed")
    return Daemon(["dpdk-testpmd", *EAL, *devices, "--", *TESTPMD], path)


async def host_side() -> None:
    """The TAP, which ends with its process, has the host's address."""
    await until(Path("/sys/class/net", TAP).exists)
    for words in (["address", "replace", f"{HOST}/24", "dev", TAP], ["link", "set", TAP, "up"]):
        await asyncio.to_thread(subprocess.run, ["ip", *words], check=True)


async def test_a_network_card_served_by_testpmd(guests: Guests, folder: Path) -> None:
    path = folder / "testpmd.sock"
    net = NetConfig(vhost_user=True, socket=path, mac="2e:00:00:00:00:08")
    async with forwarder(path) as daemon, VM(guests.config(rng=None, nets=(net,))) as vm:
        await host_side()
        await vm.start()
        await prompt(vm)
        await shell(vm, f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up")
        await transfer(vm, HOST, random.Random(1).randbytes(MB))

        device = vm.device("net0")
        assert isinstance(device, VhostUserDevice)
        assert device.backend is not None
        daemon.kill()
        daemon.start()
        await host_side()
        await until(lambda: device.backend is not None and device.backend.connected)
        assert device.backend.losses == 1
        await transfer(vm, HOST, random.Random(2).randbytes(MB))
        await vm.kill()
        told = [e.detail async for e in vm.events(from_start=True) if e.kind is EventKind.DEVICE_ERROR]
        assert told, "that it went"
        assert all("is waited for" in detail for detail in told), "and nothing came of it"
