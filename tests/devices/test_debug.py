"""The debug console and port 0x80, as a guest writes to them and its operator reads them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import VM, ConfigError, ConsoleMode, DebugConsoleConfig, StateError
from aiovmm.bus import Policy
from aiovmm.config.options import parse_debug_console
from aiovmm.devices.debug import DebugConsole, PostCode, range_of
from tests.vm.guest import config, until


async def test_what_a_guest_writes_is_read_as_a_stream_and_goes_to_its_place(tmp_path: Path) -> None:
    place = DebugConsoleConfig(ConsoleMode.FILE, tmp_path / "out")
    async with VM(replace(config("DDi"), debug_console=place)) as vm:
        await vm.start()
        assert (
            await vm.debug_console.readuntil(
                b"\n",
            )
            == b"hello\n"
        )
        assert await vm.debug_console.readuntil(b"\n") == b"hello\n"
        await until(lambda: (tmp_path / "out").read_bytes() == b"hello\nhello\n")


async def test_the_port_is_what_was_asked_for() -> None:
    place = parse_debug_console("null,iobase=0x402")
    async with VM(replace(config("Di"), debug_console=place)) as vm:
        names = {rng.name: rng.base for rng in vm.machine.bus.ranges()}
    assert names["debug console"] == 0x402


async def test_a_guest_without_one_has_no_port_and_no_stream() -> None:
    async with VM(config("Di")) as vm:
        assert not {"debug console", "debug port"} & {rng.name for rng in vm.machine.bus.ranges()}
        with pytest.raises(StateError, match="has no debug console: say debug_console="):
            vm.debug_console  # noqa: B018


@pytest.mark.parametrize("port", [0x3F8, 0x64, 0x600, 0xCF8])
async def test_a_port_of_another_device_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=r"debug_console\.iobase: port 0x"):
        async with VM(replace(config("o"), debug_console=DebugConsoleConfig(ConsoleMode.NULL, iobase=port))):
            pass


@pytest.mark.parametrize("text", ["", "iobase=0xe9", "tty,pty", "file=", "null,iobase=0x10000", "what", "tty=1"])
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"debug[-_]console"):
        parse_debug_console(text)


async def test_numbers_at_port_80_are_in_the_log_of_who_reads_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aiovmm"):
        async with VM(config("Do")) as vm:
            await vm.start()
            await vm.wait()
    assert "guest: debug port: code=0x41 range=kernel" in [record.getMessage() for record in caplog.records]


@given(st.lists(st.binary(min_size=1, max_size=9)))
def test_all_bytes_come_out_in_order_however_they_are_cut(pieces: list[bytes]) -> None:
    out: list[bytes] = []
    device = DebugConsole(out.append)
    for piece in pieces:
        device.write_many(0, piece, 1)
    device.end_of_batch()
    assert b"".join(out) == b"".join(pieces)


def test_what_is_gathered_is_bounded() -> None:
    out: list[bytes] = []
    device = DebugConsole(out.append)
    for _ in range(1 << 18):
        device.write(0, b"x")
    assert sum(map(len, out)) >= (1 << 18) - (1 << 16)
    assert max(map(len, out)) <= 1 << 16


def test_no_vcpu_waits_and_it_reads_as_guests_expect() -> None:
    device = DebugConsole(lambda _: None)
    assert device.fast.policy[0] == Policy.SHADOW_READ | Policy.POSTED_WRITE
    assert device.fast.shadow[0] == 0xE9
    assert device.read(0, 2) == b"\xe9\0"


@given(st.binary(max_size=50))
def test_each_number_is_told_when_it_changes(codes: bytes) -> None:
    told: list[int] = []
    device = PostCode(told.append)
    for code in codes:
        device.write(0, bytes([code]))
    assert told == [code for i, code in enumerate(codes) if i == 0 or codes[i - 1] != code]
    assert device.read(0, 1) == b"\xff"


def test_every_number_has_a_range() -> None:
    assert [range_of(code) for code in (0, 0x1F, 0x20, 0x40, 0x60, 0x80, 0xFF)] == [
        "firmware",
        "firmware",
        "boot loader",
        "kernel",
        "user space",
        "custom",
        "custom",
    ]
