"""Which addresses are the host's own."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from aiovmm.sandboxes.firewall.own import is_own
from tests.devices.virtio.netns import ip, ipv6, namespace
from tests.sandboxes.frames import packed


@pytest.fixture
def apart() -> Iterator[None]:
    """A namespace with two interfaces, of which the first has two addresses of each kind and a way to everybody."""
    with namespace():
        ipv6(on=True)
        ip("link set lo up")
        ip("link add v0 type veth peer name v1")
        for address in ("192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64 nodad", "2001:db8::2/64 nodad"):
            ip(f"address add {address} dev v0")
        ip("link set v0 up")
        ip("link set v1 up")
        ip("route add default via 192.0.2.9")
        ip("-6 route add default via 2001:db8::9")
        ip("route add local 198.51.100.0/24 dev lo")
        ip("-6 route add local 2001:db8:1::/64 dev lo")
        ip("route add unreachable 203.0.113.0/24")
        yield


@pytest.mark.usefixtures("apart")
def test_the_hosts_own_addresses() -> None:
    own = ["127.0.0.1", "127.9.9.9", "::1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
    own += ["198.51.100.7", "2001:db8:1::7"]  # whole networks of it
    own += ["192.0.2.255"]  # whoever hears
    assert [address for address in own if not is_own(packed(address))] == []
    others = ["192.0.2.3", "1.1.1.1", "2001:db8::3", "2600::1"]
    assert [address for address in others if is_own(packed(address))] == []


@pytest.mark.usefixtures("apart")
def test_where_the_kernel_does_not_say_an_address_may_be_the_hosts_own() -> None:
    assert is_own(packed("203.0.113.1"))
    assert not is_own(packed("192.0.2.3"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        assert is_own(packed("192.0.2.3"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
