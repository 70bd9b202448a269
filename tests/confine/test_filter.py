"""The filter as the kernel reads it: a small interpreter of classic BPF against what is to be said of each call."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.architecture import AARCH64, X86_64
from aiovmm.confine.calls import ALLOWED, NOT_KNOWN
from aiovmm.confine.filter import JUDGED, make_filter, make_refusal

NUMBERS = {name: number for number, name in enumerate((*ALLOWED, *NOT_KNOWN, *JUDGED, "execve", "newest"), 3)}
NEWEST = max(NUMBERS.values())
ALLOW, LOG, KILL, ERRNO = 0x7FFF0000, 0x7FFC0000, 0x80000000, 0x00050000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
WORD = st.integers(0, 0xFFFFFFFF)
INTERESTING = st.sampled_from(
    [0, 1, 2, 8, 15, 77, 78, 0xFFFFFFFF, 0x5412, 0x541C, 0x8901, 0x8902, 0x3D0F00, 0x10000, 0x10000000, 0x1200011, 0x80]
)


def judge(code: bytes, number: int, *arguments: int, arch: int = X86_64.audit) -> int:
    """What the kernel does (SECCOMP_RET_*)."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at = accumulator = 0
    while True:
        op, if_true, if_false, k = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        if op == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == 0x05:  # BPF_JMP | BPF_JA
            at += k
        elif op == 0x06:  # BPF_RET | BPF_K
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += if_true if holds else if_false


def wanted(name: str, arguments: tuple[int, ...]) -> int:
    first, second = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF
    fine = {
        "ioctl": second not in (0x5412, 0x541C, 0x8901, 0x8902),
        "fcntl": second not in (8, 15),
        "socket": first == 1,
        "clone": bool(first & 0x10000) and not first & 0x7E020080,
        "kill": first in (77, 78),
        "tgkill": first in (77, 78),
        "prlimit64": not arguments[2],
    }.get(name, name in ALLOWED)
    return ALLOW if fine else ENOSYS if name in NOT_KNOWN else EPERM


CODE = make_filter(NUMBERS, X86_64.audit, families=(1,), signals_to=(77, 78))


POINTER = st.sampled_from([0, 1, 1 << 32, 0x7FFF_0000_0000]) | st.integers(0, (1 << 64) - 1)


@given(st.sampled_from(sorted(NUMBERS)), st.tuples(INTERESTING | WORD, INTERESTING | WORD, POINTER))
def test_each_call_is_judged_as_it_should_be(name: str, arguments: tuple[int, int, int]) -> None:
    assert judge(CODE, NUMBERS[name], *arguments) == wanted(name, arguments)


@given(WORD)
def test_what_is_newer_is_not_there_and_what_is_unknown_is_refused(number: int) -> None:
    if number not in NUMBERS.values():
        assert judge(CODE, number) == (ENOSYS if number > NEWEST else EPERM)


@given(WORD, WORD)
def test_numbers_of_another_architecture_end_the_process(arch: int, number: int) -> None:
    if arch != X86_64.audit:
        assert judge(CODE, number, arch=arch) == KILL


def test_the_third_set_of_numbers_is_not_there() -> None:
    assert judge(CODE, NUMBERS["read"] | 0x40000000) == ENOSYS


def test_a_policy_can_be_tried() -> None:
    code = make_filter(NUMBERS, AARCH64.audit, families=(1,), signals_to=(77,), log=True)
    arch = AARCH64.audit
    assert judge(code, NUMBERS["execve"], arch=arch) == LOG
    assert judge(code, NUMBERS["socket"], 2, arch=arch) == LOG
    assert judge(code, NUMBERS["read"], arch=arch) == ALLOW


def test_a_process_group_may_be_given() -> None:
    code = make_filter(NUMBERS, X86_64.audit, families=(), signals_to=(-5,))
    assert judge(code, NUMBERS["kill"], -5 & 0xFFFFFFFFFFFFFFFF) == ALLOW
    assert judge(code, NUMBERS["kill"], 5) == EPERM


def test_helpers_may_be_many() -> None:
    code = make_filter(NUMBERS, X86_64.audit, families=(), signals_to=range(100, 400))
    for name in ("kill", "tgkill"):
        assert [pid for pid in range(500) if judge(code, NUMBERS[name], pid) == ALLOW] == [*range(100, 400)]
    assert judge(code, NUMBERS["read"]) == ALLOW
    assert judge(code, NUMBERS["prlimit64"], 0, 0, 1) == EPERM


@given(WORD, WORD)
def test_one_call_may_not_be_there(arch: int, number: int) -> None:
    code = make_refusal(425, X86_64.audit)
    assert judge(code, number, arch=arch) == (ENOSYS if (number, arch) == (425, X86_64.audit) else ALLOW)
    assert judge(code, 425) == ENOSYS


@pytest.mark.parametrize(
    "name", ["io_uring_setup", "io_uring_register", "pidfd_send_signal", "execve", "ptrace", "setns"]
)
def test_what_no_filter_sees_through_is_not_among_them(name: str) -> None:
    assert name not in ALLOWED


@pytest.mark.parametrize("name", [*ALLOWED, *NOT_KNOWN])
def test_the_compiler_knows_each_name_on_some_architecture(name: str) -> None:
    from aiovmm.native.build import HERE

    declared = [(HERE / "cdef" / arch / "calls.h").read_text().split() for arch in ("x86_64", "aarch64")]
    assert any(f"SYS_{name}" in words for words in declared)
