"""Decoding of what the run loop leaves behind when a run ends."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from aiovmm.kvm import exits
from aiovmm.kvm.exits import decode
from aiovmm.native import ffi, lib


def final(code: int, detail: int = 0, data: tuple[int, ...] = (), kind: int = lib.AVMM_END_EXIT) -> Any:
    fields = {"kind": kind, "code": code, "detail": detail, "ndata": len(data), "data": list(data)}
    return ffi.new("struct avmm_final *", fields)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (final(0, kind=lib.AVMM_END_STOP), exits.Stopped()),
        (final(errno.EFAULT, kind=lib.AVMM_END_ERRNO), exits.RunFailed(errno.EFAULT)),
        (final(0, 0, (0x80000021,)), exits.Unknown(0, 0x80000021)),
        (final(4, 1, (0x1000, 0x4000, 0x400)), exits.Debug(1, 0x1000, 0x4000, 0x400)),
        (final(4, 0xF2000000, (0x4000,)), exits.Debug(0xF2000000, 0x4000)),
        (final(5), exits.Hlt()),
        (final(8), exits.Shutdown()),
        (final(9, 3, (0x80000021,)), exits.FailEntry(0x80000021, cpu=3)),
        (final(17, 3, (1, 2)), exits.InternalError(3, (1, 2), b"")),
        (final(24, 3, (7,)), exits.SystemEvent(exits.SystemEventType.CRASH, (7,))),
        (final(37), exits.ContextLost()),
        (final(38), exits.Unknown(38)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, exits.FinalExit) else "",
)
def test_every_end_has_its_type(raw: Any, expected: exits.FinalExit) -> None:
    assert decode(raw) == expected


def test_an_emulation_failure_tells_its_instruction_where_kvm_does() -> None:
    words = (0x0C8B80FF3_03, 0)
    told = decode(final(17, 1, (1, *words)))
    assert isinstance(told, exits.InternalError)
    assert told.instruction == words[0].to_bytes(8, "little")[1:4]
    for untold in ((0, *words), (1,), ()):
        assert decode(final(17, 1, untold)) == exits.InternalError(1, untold, b"")


def test_an_instruction_length_from_the_kernel_is_not_trusted() -> None:
    told = decode(final(17, 1, (1, 0xFF, 0)))
    assert isinstance(told, exits.InternalError)
    assert len(told.instruction) == 15


def test_codes_of_the_hardware_are_hexadecimal() -> None:
    assert "0x80000021 on CPU 3" in str(decode(final(9, 3, (0x80000021,))))
    assert "hardware exit reason 0x401" in str(decode(final(0, 0, (0x401,))))
