"""The device as a VM's configuration asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm import VM, ConfigError, PayloadConfig, StateError, VMConfig, VsockConfig
from aiovmm.config.options import parse_vsock
from aiovmm.devices.virtio.vsock import VsockDevice


def test_what_is_configured_reaches_the_device() -> None:
    config = VsockConfig(cid=9, socket=Path("/run/x"), buffer_size=8192, max_connections=3, connect_timeout=1.5)
    device = VsockDevice.from_config(config)
    assert device.read_config(0, 8) == (9).to_bytes(8, "little")
    assert device._switch.muxer.buffer == 8192
    assert device._switch.muxer.limit == 3
    assert device._hybrid is not None
    assert (device._hybrid.path, device._hybrid.timeout) == (Path("/run/x"), 1.5)


def test_the_reference_monitors_option() -> None:
    config = parse_vsock("cid=5,socket=/run/vm.sock,id=v")
    assert (config.cid, config.socket, config.id) == (5, Path("/run/vm.sock"), "v")


@pytest.mark.parametrize(
    "wrong",
    [
        {"cid": 2},
        {"cid": 1 << 32},
        {"buffer_size": 100},
        {"buffer_size": 1 << 40},
        {"max_connections": 0},
        {"connect_timeout": 0.0},
        {"connect_timeout": float("inf")},
        {"connect_timeout": float("nan")},
        {"socket": Path("/" + 100 * "x")},
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"vsock.{next(iter(wrong))}"):
        VsockConfig(**wrong)  # type: ignore[arg-type]


def test_a_vm_that_is_not_there_yet_says_so() -> None:
    vm = VM(VMConfig(PayloadConfig(Path("/nonexistent"))))
    with pytest.raises(StateError, match="inside `async with`"):
        _ = vm.vsock
