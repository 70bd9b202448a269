"""Network devices from `--net` options."""

from __future__ import annotations

import os
import socket

import pytest

from aiovmm.config.options import parse_net
from aiovmm.devices.virtio.net import NetDevice, PasstBackend, SocketBackend, TapBackend, derive_mac, random_mac
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.configured import make_net
from aiovmm.errors import ConfigError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import NetGuest, ready

FRAME = bytes(range(64))


def device(text: str) -> NetDevice:
    return make_net(parse_net(text))


def test_an_empty_tap_is_one_to_be_made() -> None:
    nic = device("tap=,mac=2e:00:00:00:00:01,num_queues=4,queue_size=512")
    assert isinstance(nic.backend, TapBackend)
    assert nic.backend.pairs == 2
    assert nic.mac == bytes.fromhex("2e0000000001")
    assert nic.queue_sizes == (512, 512, 512, 512, 64)
    assert nic.features & f.MQ


def test_offloads_are_left_out() -> None:
    everything = device("tap=").features
    no_ufo = device("tap=,offload_ufo=off").features
    assert everything & ~no_ufo == f.HOST_UFO | f.GUEST_UFO
    no_tso = device("tap=,offload_tso=off").features
    assert everything & ~no_tso == f.HOST_TSO4 | f.HOST_TSO6 | f.HOST_ECN | f.GUEST_TSO4 | f.GUEST_TSO6 | f.GUEST_ECN
    assert not device("tap=,offload_csum=off").features & (f.OFFLOADS | f.CSUM | f.HOST_TSO4 | f.HOST_UFO)


def test_passt() -> None:
    assert isinstance(device("passt=on").backend, PasstBackend)


@pytest.mark.parametrize(
    "text",
    [
        "passt=on,ip=10.0.0.1",
        "fd=3,ip=10.0.0.1",
        "host_mac=01:00:00:00:00:00",
        "vhost_user=on,socket=/tmp/x,tap=tap0",
        "fd=999999",
    ],
)
def test_what_does_not_go_together(text: str) -> None:
    with pytest.raises(ConfigError):
        device(text)


async def test_a_socket_by_descriptor_is_duplicated() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nic = device(f"fd={ours.fileno()}")
    ours.close()
    assert isinstance(nic.backend, SocketBackend)
    with theirs:
        async with Harness(nic) as harness:
            await ready(nic)
            await NetGuest(harness).send(FRAME)
            assert theirs.recv(100) == FRAME


async def test_two_devices_on_a_socketpair_are_linked() -> None:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = (NetDevice(SocketBackend(end, vnet_hdr=True)) for end in ends)
    async with Harness(one) as here, Harness(other) as there:
        await ready(one)
        await ready(other)
        receiver = NetGuest(there)
        receiver.fill()
        await NetGuest(here).send(bytes(60000))
        assert (await receiver.receive()).frame == bytes(60000)


def test_addresses_are_local_and_unicast_and_derived_ones_stay() -> None:
    for mac in (random_mac(), derive_mac("web-1"), random_mac(lambda n: b"\xff" * n)):
        assert mac[0] & 3 == 2
    assert derive_mac("web-1") == derive_mac("web-1") != derive_mac("web-2")
    assert derive_mac("\udcff") == derive_mac("\udcff") != derive_mac("\udcfe"), "a VM's name need not be UTF-8"
    assert random_mac(os.urandom) != random_mac(os.urandom)
