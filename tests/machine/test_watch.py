"""A panic is recognised on either console, whole or in pieces, once for each kernel."""

from __future__ import annotations

import pytest

from aiovmm.machine.watch import PanicWatch

LINE = b"[    1.0] Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.parametrize("cut", range(0, len(LINE), 3))
def test_a_message_in_two_pieces(cut: int) -> None:
    said: list[str] = []
    watch = PanicWatch(said.append)
    watch.watch(LINE[:cut], "console")
    assert not said
    watch.watch(LINE[cut:] + b"\r\n[    1.1] CPU: 0", "console")
    assert said == ["Kernel panic - not syncing: sysrq triggered crash"]


def test_the_message_is_whole_though_it_comes_a_byte_at_a_time_between_other_output() -> None:
    said: list[str] = []
    watch = PanicWatch(said.append)
    for byte in LINE + b": " + b"x" * 300 + b"\n":
        watch.watch(bytes([byte]), "serial")
        watch.watch(b"\n", "console")
    assert said == ["Kernel panic - not syncing: sysrq triggered crash: " + "x" * 300]


def test_a_message_without_an_end_is_told_at_the_guests_end_or_when_it_is_long() -> None:
    said: list[str] = []
    watch = PanicWatch(said.append)
    watch.watch(b"Kernel panic - not syncing: cut o", "serial")
    assert watch.seen
    watch.flush()
    watch.flush()
    assert said == ["Kernel panic - not syncing: cut o"]
    watch.clear()
    watch.watch(b"Kernel panic - not syncing: " + b"y" * 5000, "serial")
    assert len(said) == 2
    assert len(said[1]) == 1024


def test_output_of_the_other_console_in_between_hides_nothing_and_makes_no_panic() -> None:
    said: list[str] = []
    watch = PanicWatch(said.append)
    watch.watch(b"Kernel panic - ", "console")
    watch.watch(b"not syncing", "serial")
    assert not watch.seen
    watch.watch(b"not syncing: x\n", "console")
    assert said == ["Kernel panic - not syncing: x"]


def test_a_kernel_that_panics_on_both_consoles_panics_once_and_the_next_again() -> None:
    said: list[str] = []
    watch = PanicWatch(said.append)
    for stream in ("serial", "console"):
        watch.watch(LINE + b"\n", stream)
    assert len(said) == 1
    watch.clear()
    watch.watch(LINE + b"\n", "serial")
    assert len(said) == 2
