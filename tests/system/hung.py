"""What is to be known of a guest that does not answer: how far it came, what its processors do, and what waits for whom."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from aiovmm import VM, Console
from aiovmm.snapshot.document import decode
from tests.kvmhost.again import LostByKvm

_ISR, _IRR = 0x100, 0x200  # of a local APIC's page: eight words of 32 bits, 16 bytes apart
_IF = 0x200  # in rflags
_RUNNABLE = 0  # KVM_MP_STATE_RUNNABLE
_KVM_RUN = "0xae80"
IN_KVM = "in KVM_RUN"
LOOKS = 3


async def failure(vm: VM, console: Console, what: str) -> AssertionError:
    """Of `what`, with some lines, what tells most first; takes some seconds, and types a newline: an interrupt that was lost
    comes again with the next."""
    stats, looks = [f"stats: {vm.stats()}"], list[list[Any]]()
    try:
        for _ in range(LOOKS):
            await asyncio.sleep(1)  # since it was entered
            threads = _threads(vm)
            processors, board = await _state(vm)
            looks.append([{"thread": thread, **one} for thread, one in zip(threads, processors, strict=True)])
        seen = len(console.history)
        stats.append(f"then: {vm.stats()}")
        await console.send(b"\n")
        await asyncio.sleep(5)
        stats += [f"5 s after a newline: {console.history[seen:]!r}", str(board)]
    except Exception as exc:  # it is told with what made us look, whose place it does not take
        stats.append(f"no more is known: {exc!r}")
    kind = LostByKvm if is_lost(looks) else AssertionError
    shown = [f"processor {number}: {one}" for look in looks for number, one in enumerate(look)]
    return kind("\n".join([what, *shown, *stats, f"its console's end: {console.history[-1500:]!r}"]))


def is_lost(looks: list[list[Any]]) -> bool:
    """Whether some processor is as LostByKvm says, by what was seen of all at LOOKS times. It had a second each time, and was
    entered anew."""
    return len(looks) == LOOKS and any(
        all(one == seen[0] for one in seen) and _is_to_be_interrupted(seen[0]) for seen in zip(*looks, strict=True)
    )


def _is_to_be_interrupted(processor: Any) -> bool:
    if "requested" not in processor:  # another architecture's
        return False
    requested, in_service = (max(processor[key], default=0) >> 4 for key in ("requested", "in service"))
    takes = processor["thread"] == IN_KVM and processor["mp_state"] == _RUNNABLE and int(processor["rflags"], 16) & _IF
    return bool(takes and requested > in_service)


def _threads(vm: VM) -> list[str]:
    return [_thread(vcpu.thread_id) for vcpu in vm.machine.vcpus]


def _thread(number: int | None) -> str:
    """What a processor's does: IN_KVM, or the system call (202 is a wait for us) with its arguments."""
    try:
        call = Path(f"/proc/self/task/{number}/syscall").read_text().split()
    except OSError as exc:
        return str(exc)
    return IN_KVM if call == ["running"] or call[2:3] == [_KVM_RUN] else " ".join(call)


async def _state(vm: VM) -> tuple[list[Any], Any]:
    """As a snapshot has it: of each processor, and of all else on the board."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        await vm.snapshot(folder)
        board = decode((Path(folder) / "state.json").read_bytes())["machine"]["board"]
    vcpus = board.pop("processors")["vcpus"]
    return [*map(_processor, vcpus)], board


def _processor(vcpu: Any) -> dict[str, Any]:
    if "lapic" not in vcpu:
        return {key: value for key, value in vcpu.items() if isinstance(value, int | str)}
    names = {"rip": hex(vcpu["regs"]["rip"]), "rflags": hex(vcpu["regs"]["rflags"]), "mp_state": vcpu["mp_state"]}
    return {**names, "in service": _vectors(vcpu["lapic"], _ISR), "requested": _vectors(vcpu["lapic"], _IRR)}


def _vectors(page: bytes, start: int) -> list[int]:
    bits = int.from_bytes(b"".join(page[at : at + 4] for at in range(start, start + 128, 16)), "little")
    return [vector for vector in range(256) if bits >> vector & 1]
