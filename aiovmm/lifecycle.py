"""The life of a VM as a pure state machine: states, why it ended, and the events that tell of both.

    created ──start──► running ◄──resume── paused ◄──restore── created
                          │  └────pause─────► │
                          └──────end──────────┴──► stopped

A guest's reboot under RebootPolicy.RESTART stays in `running`. Every transition is idempotent: asking for the state that the
VM is in already changes nothing. `stopped` is final.
"""

from __future__ import annotations

import enum

from aiovmm.errors import StateError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Event", "EventKind", "ExitReason", "ExitStatus", "Lifecycle", "VMState"]


class VMState(enum.Enum):
    """Where a VM is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class ExitReason(enum.Enum):
    """Why a VM ended."""

    SHUTDOWN = "shutdown"  # the guest powered itself off
    REBOOT = (
        "reboot"  # the guest asked for a reset (or triple-faulted, having run user space) and the policy is to exit
    )
    PANIC = "panic"  # the guest's kernel panicked
    TRIPLE_FAULT = "triple-fault"  # before any user space ran: a reset would only bring it again
    KILLED = "killed"  # the program killed it
    LIFETIME = "lifetime"  # it has had all the time that it may have
    IDLE = "idle"  # it has done nothing for as long as it may
    ERROR = "error"  # KVM or the host could not go on


@dataclass(frozen=True)
class ExitStatus:
    """The end of a VM: `reason`, a sentence of `detail`, and the exception behind an ERROR."""

    reason: ExitReason
    detail: str = ""
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        """True if the guest ended by its own orderly will."""
        return self.reason in (ExitReason.SHUTDOWN, ExitReason.REBOOT)


class EventKind(enum.Enum):
    """What can happen to a VM."""

    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    RESTORED = "restored"  # it stands where its snapshot, or its template, stood
    REBOOTED = "rebooted"  # the guest was reset and runs again
    POWER_BUTTON = "power-button"  # shutdown() pressed it
    PANICKED = "panicked"
    DEVICE_ADDED = "device-added"  # while the VM was there, by `add`
    DEVICE_REMOVED = "device-removed"
    WATCHDOG = "watchdog"  # the guest has stopped to ping it
    RESIZED = "resized"  # memory or processors came or went
    DEVICE_ERROR = "device-error"
    DEVICE_ACTIVATED = "device-activated"  # the guest's driver has taken a virtio device over
    DEVICE_RESET = "device-reset"  # it has let go of it
    DEVICE_SLOW = "device-slow"  # a device kept the event loop, and with it every guest
    STOPPED = "stopped"


@dataclass(frozen=True)
class Event:
    """One event: `kind`, the VM's name, `time` (seconds since the epoch), and details as plain text.

    `device` is the id by which `VM.device` finds it, or the name of a device of the platform. `error` is what a device or the
    host failed with; its traceback says where, and holds nothing.
    """

    kind: EventKind
    vm: str
    time: float
    detail: str = ""
    device: str | None = None
    status: ExitStatus | None = None
    error: BaseException | None = None


_ALLOWED: dict[VMState, frozenset[VMState]] = {
    VMState.CREATED: frozenset({VMState.RUNNING, VMState.STOPPED}),
    VMState.RUNNING: frozenset({VMState.PAUSED, VMState.STOPPED}),
    VMState.PAUSED: frozenset({VMState.RUNNING, VMState.STOPPED}),
    VMState.STOPPED: frozenset(),
}


class Lifecycle:
    """The state and the transitions. `move` says whether anything changed."""

    def __init__(self) -> None:
        self.state = VMState.CREATED
        self.status: ExitStatus | None = None

    def check(self, target: VMState) -> bool:
        """True if `target` may be entered, False if the VM is there already. Raises StateError otherwise."""
        if target is self.state:
            return False
        if target not in _ALLOWED[self.state]:
            ended = f" ({self.status.reason.value}: {self.status.detail})" if self.status else ""
            raise StateError(f"a VM that is {self.state.value}{ended} cannot become {target.value}; make a new VM")
        return True

    def move(self, target: VMState) -> bool:
        """Enter `target`; False if the VM was there already. Raises StateError."""
        changed = self.check(target)
        self.state = target
        return changed

    def stand(self) -> None:
        """Enter `paused` from the beginning: where another VM stood. Raises StateError."""
        if self.state is not VMState.CREATED:
            self.check(VMState.CREATED)
        self.state = VMState.PAUSED

    def end(self, status: ExitStatus) -> bool:
        """Enter `stopped` for the reason in `status`. The first reason stays; False if there was one."""
        if self.state is VMState.STOPPED:
            return False
        self.state = VMState.STOPPED
        self.status = status
        return True
