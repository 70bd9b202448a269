"""How a vCPU can leave the guest for good, as frozen dataclasses, and the decoding of what the run loop left behind."""

from __future__ import annotations

import os
from typing import Any

from aiovmm.native import lib
from aiovmm.runtime.dataclass import dataclass

__all__ = [
    "EMULATION",
    "ContextLost",
    "Debug",
    "FailEntry",
    "FinalExit",
    "Hlt",
    "InternalError",
    "RunFailed",
    "Shutdown",
    "Stopped",
    "SystemEvent",
    "SystemEventType",
    "Unknown",
    "decode",
]


class SystemEventType:
    """KVM_SYSTEM_EVENT_*."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6


@dataclass(frozen=True)
class FinalExit:
    """Base of all: the vCPU is out of the guest and its thread has ended."""


@dataclass(frozen=True)
class Stopped(FinalExit):
    """It was asked to stop."""


@dataclass(frozen=True)
class Shutdown(FinalExit):
    """KVM_EXIT_SHUTDOWN: a triple fault, which on a PC resets the machine."""


@dataclass(frozen=True)
class Hlt(FinalExit):
    """KVM_EXIT_HLT: only without an interrupt controller in the kernel; nothing could wake the vCPU again."""


@dataclass(frozen=True)
class InternalError(FinalExit):
    """KVM_EXIT_INTERNAL_ERROR. Suberror 1: the instruction emulator does not know `instruction` (up to 15 bytes)."""

    suberror: int
    data: tuple[int, ...]
    instruction: bytes

    def __str__(self) -> str:
        what = {1: "emulation failure", 2: "simultaneous exceptions", 3: "exit while delivering an event"}
        text = f"KVM internal error: {what.get(self.suberror, f'suberror {self.suberror}')}"
        return text + (f" at instruction bytes {self.instruction.hex(' ')}" if self.instruction else "")


@dataclass(frozen=True)
class FailEntry(FinalExit):
    """KVM_EXIT_FAIL_ENTRY: the processor refused the guest's state; `reason` is the hardware's code."""

    reason: int
    cpu: int

    def __str__(self) -> str:
        return f"the processor refused the guest's state: hardware entry failure {self.reason:#x} on CPU {self.cpu}"


@dataclass(frozen=True)
class ContextLost(FinalExit):
    """KVM_EXIT_NOTIFY with KVM_NOTIFY_CONTEXT_INVALID."""

    def __str__(self) -> str:
        return "an instruction of the guest's let no interrupt in, and the processor could not keep its state as it left it"


@dataclass(frozen=True)
class SystemEvent(FinalExit):
    """KVM_EXIT_SYSTEM_EVENT: the guest asked its firmware interface for `type`."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True)
class RunFailed(FinalExit):
    """KVM_RUN itself failed with `errno` (EFAULT: guest memory has no backing)."""

    errno: int

    def __str__(self) -> str:
        return f"KVM_RUN: {os.strerror(self.errno)}"


@dataclass(frozen=True)
class Debug(FinalExit):
    """KVM_EXIT_DEBUG at `pc`; `exception`, `dr6` and `dr7` as the processor has them. On arm64, which has no such registers,
    `exception` is ESR_EL2 and `pc` the address of a watchpoint's access (FAR_EL2)."""

    exception: int
    pc: int
    dr6: int = 0
    dr7: int = 0


@dataclass(frozen=True)
class Unknown(FinalExit):
    """An exit that this monitor does not handle: KVM's exit reason, and the hardware's where KVM does not know it."""

    reason: int
    hardware_reason: int = 0

    def __str__(self) -> str:
        return (
            f"KVM exit {self.reason}, hardware exit reason {self.hardware_reason:#x}, which this monitor does not know"
        )


EMULATION = 1  # KVM_INTERNAL_ERROR_EMULATION
_HAS_INSTRUCTION = 1  # KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES


def decode(final: Any) -> FinalExit:
    """The exit in a `struct avmm_final`."""
    if final.kind == lib.AVMM_END_STOP:
        return Stopped()
    if final.kind == lib.AVMM_END_ERRNO:
        return RunFailed(final.code)
    data = tuple(int(final.data[i]) for i in range(final.ndata))
    match final.code:
        case 5:  # KVM_EXIT_HLT
            return Hlt()
        case 8:  # KVM_EXIT_SHUTDOWN
            return Shutdown()
        case 9:  # KVM_EXIT_FAIL_ENTRY
            return FailEntry(data[0], final.detail)
        case 17:  # KVM_EXIT_INTERNAL_ERROR
            return InternalError(final.detail, data, _instruction(final.detail, data))
        case 24:  # KVM_EXIT_SYSTEM_EVENT
            return SystemEvent(final.detail, data)
        case 37:  # KVM_EXIT_NOTIFY
            return ContextLost()
        case 4:  # KVM_EXIT_DEBUG
            return Debug(final.detail, *data)
        case 0:  # KVM_EXIT_UNKNOWN
            return Unknown(0, data[0])
        case reason:
            return Unknown(reason)


def _instruction(suberror: int, data: tuple[int, ...]) -> bytes:
    """`emulation_failure` overlays data: flags, then a byte of length and 15 of instruction."""
    if suberror != EMULATION or len(data) < 3 or not data[0] & _HAS_INSTRUCTION:
        return b""
    raw = b"".join(word.to_bytes(8, "little") for word in data[1:3])
    return raw[1 : 1 + min(raw[0], 15)]
