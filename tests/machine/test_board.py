"""What a machine asks of its board, whatever the architecture."""

from __future__ import annotations

from typing import Any

import pytest

from aiovmm import VM, HostError
from aiovmm.devices.port import PortDevice
from aiovmm.errors import ConfigError
from aiovmm.machine.architecture import board_of_host
from tests.vm.guest import config

pytestmark = pytest.mark.kvm


class Port(PortDevice):
    base, size, name = 0x710, 2, "mine"


@pytest.mark.parametrize("step", ["set_up", "add_devices", "load"])
async def test_a_board_that_was_built_half_gives_back_what_it_has(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its VM and the worker are there yet, and where another step fails as well."""
    board, closed = board_of_host(), []
    real = board.close

    def close(self: Any) -> None:
        real(self)
        closed.append(self)

    def refuse(self: Any, *_: object) -> None:
        raise HostError("doing that", 12)

    monkeypatch.setattr(board, "close", close)
    monkeypatch.setattr(board, step, refuse)
    with pytest.raises(HostError, match="doing that"):
        async with VM(config("s")):
            pass
    assert len(closed) == 1


async def test_a_device_at_a_port_needs_a_machine_that_has_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_of_host(), "has_ports", False)
    with pytest.raises(ConfigError, match="mine is at a port, which this machine has not"):
        async with VM(config("s"), ports=[Port()]):
            pass
