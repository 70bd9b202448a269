"""The only package that knows /dev/kvm: ioctls, VM and vCPU wrappers, exits, interrupt routing."""

from aiovmm.kvm.cpuid import CpuidEntry
from aiovmm.kvm.exitloop import ExitLoop
from aiovmm.kvm.exits import FinalExit
from aiovmm.kvm.ioeventfd import Ioeventfd
from aiovmm.kvm.routing import GsiRouting, IrqfdLine
from aiovmm.kvm.state import DescriptorTable, MpState, Regs, Segment, Sregs
from aiovmm.kvm.system import Kvm
from aiovmm.kvm.vcpu import Vcpu, VcpuCounters
from aiovmm.kvm.vmfd import VmFd

__all__ = [
    "CpuidEntry",
    "DescriptorTable",
    "ExitLoop",
    "FinalExit",
    "GsiRouting",
    "Ioeventfd",
    "IrqfdLine",
    "Kvm",
    "MpState",
    "Regs",
    "Segment",
    "Sregs",
    "Vcpu",
    "VcpuCounters",
    "VmFd",
]
