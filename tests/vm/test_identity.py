"""Who the machine is: what a guest finds of SMBIOS where firmware would have put it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aiovmm import VM, ConfigError
from aiovmm.config import PlatformConfig
from aiovmm.config.options import parse_platform
from tests.vm.guest import config


async def bios_area(platform: PlatformConfig) -> bytes:
    async with VM(replace(config("s"), platform=platform)) as vm:
        return vm.machine.memory.read(0xF0000, 0x10000)


async def test_it_is_found_by_its_anchor_beside_the_mp_table() -> None:
    text = 'serial_number=ds=nocloud,uuid=12345678-1234-1234-1234-1234567890ab,oem_strings=[io.systemd.credential:a=b,"c,d"]'
    bios = await bios_area(parse_platform(text))
    anchors = [bios[at : at + 5] for at in range(0, len(bios), 16)]
    assert anchors.count(b"_SM3_") == 1
    assert sum(anchor.startswith(b"_MP_") for anchor in anchors) == 1
    for said in (b"ds=nocloud\0", b"io.systemd.credential:a=b\0c,d\0\0", b"aiovmm\0"):
        assert said in bios
    assert bytes.fromhex("78563412341234121234 1234567890ab") in bios


async def test_a_guest_of_which_nothing_is_said_has_no_tables() -> None:
    assert b"_SM3_" not in await bios_area(PlatformConfig(num_pci_segments=2))


async def test_the_new_names_go_before_the_old() -> None:
    text = "serial_number=old,system_serial_number=new,uuid=0000000000000000000000000000000f,system_uuid=" + "ab" * 16
    bios = await bios_area(parse_platform(text))
    assert b"new\0" in bios
    assert b"old\0" not in bios
    assert b"\xab" * 16 in bios


@pytest.mark.parametrize("form", ["{%s}", "urn:uuid:%s", "%s"])
async def test_a_uuid_may_be_in_braces_or_a_urn(form: str) -> None:
    bios = await bios_area(parse_platform("uuid=" + form % "12345678-1234-1234-1234-1234567890AB"))
    assert bytes.fromhex("78563412341234121234 1234567890ab") in bios


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", "{12345678-1234-1234-1234-1234567890ab"),
        ("uuid", "x"),
        ("system_uuid", "1234"),
        ("system_uuid", "12345678-1234-1234-1234-1234567890a"),
        ("uuid", "é" * 32),
    ],
)
def test_what_is_no_uuid_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"platform.{key}: .* is no UUID"):
        parse_platform(f"{key}={value}")


@pytest.mark.parametrize(
    "key", ["serial_number", "system_manufacturer", "system_version", "chassis_asset_tag", "system_family"]
)
def test_texts_are_checked(key: str) -> None:
    text: dict[str, Any] = {key: "a\0b"}
    with pytest.raises(ConfigError, match=f"platform.{key}: .*contains a NUL"):
        PlatformConfig(**text)


async def test_texts_that_do_not_fit_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="there is room for"):
        await bios_area(PlatformConfig(oem_strings=("x" * 40000, "y" * 20000)))
