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
    watch.watch(LINE[cut:], "console")
    assert len(said) == 1
    assert said[0].startswith("Kernel panic - not syncing")


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
        watch.watch(LINE, stream)
    assert len(said) == 1
    watch.clear()
    watch.watch(LINE, "serial")
    assert len(said) == 2
