"""A nested KVM host: a Debian in QEMU's TCG with AMD-V emulated, in which `kvm_amd` and stock guest kernels work.

It needs no privilege and no KVM on the machine. It is slow but fair: monitor, kernel and guest are slowed alike.
`python -m tests.kvmhost --help` for the command, `Host` for the object, plugin.py for tests.
"""

from __future__ import annotations

from .errors import BuildFailed, CommandFailed, CommandRefused, HostLost, KvmHostError, MissingTool
from .host import Host
from .results import Completed
from .settings import PROFILES, Size

__all__ = [
    "PROFILES",
    "BuildFailed",
    "CommandFailed",
    "CommandRefused",
    "Completed",
    "Host",
    "HostLost",
    "KvmHostError",
    "MissingTool",
    "Size",
]
