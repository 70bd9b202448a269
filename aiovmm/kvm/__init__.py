"""The only package that knows /dev/kvm: ioctls, VM and vCPU wrappers, exits, interrupt routing. What is an architecture's is in
its room: x86_64, aarch64."""

from aiovmm.kvm.exitloop import ExitLoop
from aiovmm.kvm.exits import FinalExit
from aiovmm.kvm.ioeventfd import Ioeventfd
from aiovmm.kvm.routing import GsiRouting, IrqfdLine
from aiovmm.kvm.system import Kvm
from aiovmm.kvm.vcpu import Vcpu, VcpuCounters
from aiovmm.kvm.vmfd import VmFd

__all__ = [
    "ExitLoop",
    "FinalExit",
    "GsiRouting",
    "Ioeventfd",
    "IrqfdLine",
    "Kvm",
    "Vcpu",
    "VcpuCounters",
    "VmFd",
]
