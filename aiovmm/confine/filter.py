"""The filter of system calls as a classic BPF program (seccomp(2)), made of the policy. Pure: numbers of calls come from outside.

wrong architecture                        the process ends: its numbers would mean other calls
ioctl                                     not TIOCSTI and TIOCLINUX, which type into terminals of others
ioctl, fcntl                              not FIOSETOWN, SIOCSPGRP, F_SETOWN, F_SETOWN_EX: by them the kernel signals any process
socket                                    of the given families
clone                                     threads; no process, no namespace
kill, tgkill                              signals to the given processes
prlimit64                                 asking; no limit is changed
calls.ALLOWED                             yes
all others                                EPERM, or, while a policy is tried, a line in the kernel's log
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence

from aiovmm.confine.calls import ALLOWED, NOT_KNOWN

__all__ = ["JUDGED", "make_filter", "make_refusal"]

JUDGED = ("ioctl", "fcntl", "socket", "clone", "kill", "tgkill", "prlimit64")
"""Calls that are judged by their arguments."""

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _JUMP, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x05, 0x06  # <linux/bpf_common.h>
_FARTHEST = 255  # instructions that are jumped over by a condition
_NUMBER, _ARCH, _ARGUMENTS = (
    0,
    4,
    16,
)  # in struct seccomp_data; the low half of an argument is its first, both are little-endian
_ALLOW, _LOG, _KILL, _ERRNO = 0x7FFF0000, 0x7FFC0000, 0x80000000, 0x00050000  # <linux/seccomp.h>
_X32 = 0x40000000  # the third set of numbers of an x86-64 kernel
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_F_SETOWN, _F_SETOWN_EX = 8, 15
_CLONE_THREAD = 0x00010000
_NAMESPACES = 0x7E020080  # CLONE_NEW*

_Code = list[tuple[int, int, int, int]]


def make_filter(
    numbers: Mapping[str, int], audit: int, *, families: Sequence[int], signals_to: Iterable[int], log: bool = False
) -> bytes:
    """An array of `struct sock_filter`. `numbers` of the calls that the architecture `audit` has; `families` of sockets that may
    still be made; `signals_to`: ids of processes, negative ones as kill(2) takes them. With `log` what would be refused
    is done, and logged."""
    refuse = _LOG if log else _ERRNO | errno.EPERM
    code: _Code = [
        _load(_ARCH),
        *_unless_equal(audit, [_ret(_KILL)]),
        _load(_NUMBER),
        *_if_at_least(_X32, [_ret(_ERRNO | errno.ENOSYS)]),
    ]
    commands = [_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP]
    code += _for(numbers["ioctl"], [_load_argument(1), *_one_of(commands, refuse), _ret(_ALLOW)])
    code += _for(numbers["fcntl"], [_load_argument(1), *_one_of([_F_SETOWN, _F_SETOWN_EX], refuse), _ret(_ALLOW)])
    code += _for(numbers["socket"], [_load_argument(0), *_one_of(families, _ALLOW), _ret(refuse)])
    code += _for(
        numbers["clone"],
        [
            _load_argument(0),
            *_if_any_bit(_NAMESPACES, [_ret(refuse)]),
            *_if_any_bit(_CLONE_THREAD, [_ret(_ALLOW)]),
            _ret(refuse),
        ],
    )
    for name in ("kill", "tgkill"):
        processes = [pid & 0xFFFFFFFF for pid in signals_to]
        code += _for(numbers[name], [_load_argument(0), *_one_of(processes, _ALLOW), _ret(refuse)])
    asking = _if_at_least(1, [_ret(refuse)])  # either half of a pointer to a new limit
    code += _for(
        numbers["prlimit64"], [_load_argument(2), *asking, _load_argument(2, high=True), *asking, _ret(_ALLOW)]
    )
    code += _one_of([numbers[name] for name in ALLOWED if name in numbers], _ALLOW)
    code += _one_of([numbers[name] for name in NOT_KNOWN if name in numbers], _ERRNO | errno.ENOSYS)
    code += _if_at_least(max(numbers.values()) + 1, [_ret(_ERRNO | errno.ENOSYS)])  # newer than all that we know of
    code.append(_ret(refuse))
    return _packed(code)


def make_refusal(number: int, audit: int) -> bytes:
    """Of this one call: there is none (ENOSYS). Calls of other architectures go on."""
    code = [_load(_ARCH), *_unless_equal(audit, [_ret(_ALLOW)]), _load(_NUMBER)]
    code += [*_one_of([number], _ERRNO | errno.ENOSYS), _ret(_ALLOW)]
    return _packed(code)


def _packed(code: _Code) -> bytes:
    return b"".join(struct.pack("<HBBI", *each) for each in code)


def _load(offset: int) -> tuple[int, int, int, int]:
    return _LOAD, 0, 0, offset


def _load_argument(index: int, *, high: bool = False) -> tuple[int, int, int, int]:
    return _load(_ARGUMENTS + 8 * index + 4 * high)


def _ret(value: int) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, value


def _unless_equal(value: int, then: _Code) -> _Code:
    return [(_EQUAL, len(then), 0, value), *then]


def _if_any_bit(bits: int, then: _Code) -> _Code:
    return [(_ANY_BIT, 0, len(then), bits), *then]


def _if_at_least(value: int, then: _Code) -> _Code:
    return [(_AT_LEAST, 0, len(then), value), *then]


def _for(number: int, then: _Code) -> _Code:
    """`then` ends with a return, since it loads something else."""
    if len(then) > _FARTHEST:
        return [(_EQUAL, 1, 0, number), (_JUMP, 0, 0, len(then)), *then]
    return [(_EQUAL, 0, len(then), number), *then]


def _one_of(values: Sequence[int], verdict: int) -> _Code:
    return [each for value in values for each in ((_EQUAL, 0, 1, value), _ret(verdict))]
