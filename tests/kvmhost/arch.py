"""The architectures that there are nested hosts of: what is different between them, and nothing else is.

Of x86 it is AMD-V with nested paging that QEMU emulates; of arm64, EL2. The one for which this machine has no processor is made
without running anything of it: packages are unpacked and what is compiled is cross compiled.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.debian.stock import STOCK_KERNELS

from .errors import KvmHostError


@dataclass(frozen=True)
class Arch:
    """`name` is what `uname -m` says there; the other names are Debian's."""

    name: str
    debian: str
    triplet: str
    qemu: str  # the program
    qemu_package: str
    machine: str  # QEMU's, with what makes its processors have virtualization
    processors: tuple[str, ...]  # models that make a difference to KVM; the first is the usual one
    console: str
    kernel_arguments: str
    modules: tuple[str, ...]  # beside those that host_init.sh loads everywhere
    packages: tuple[str, ...]  # beside recipe.PACKAGES
    kernels: Mapping[str, tuple[str, str]]  # name under /guest: suite and meta-package
    newest_needs: str = ""  # why its newest kernel does not boot in the QEMU of Debian 12
    cross_packages: tuple[str, ...] = field(default=())  # the cross compiler

    @property
    def is_foreign(self) -> bool:
        """This machine runs none of its programs."""
        return self.name != platform.machine()

    @property
    def cross(self) -> str:
        """What the names of its compiler and binutils start with."""
        return f"{self.triplet}-" if self.is_foreign else ""


X86_64 = Arch(
    name="x86_64",
    debian="amd64",
    triplet="x86_64-linux-gnu",
    qemu="qemu-system-x86_64",
    qemu_package="qemu-system-x86",
    machine="q35",
    processors=("max",),
    console="ttyS0",
    kernel_arguments="mitigations=off tsc=reliable",
    modules=("kvm_amd",),
    # QEMU is the peer in benchmarks, and brings virtiofsd. passt is the network of sandboxes.
    packages=("qemu-system-x86", "passt"),
    kernels=STOCK_KERNELS,
    newest_needs="Linux 7 does not boot",
    cross_packages=("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
)

AARCH64 = Arch(
    name="aarch64",
    debian="arm64",
    triplet="aarch64-linux-gnu",
    qemu="qemu-system-aarch64",
    qemu_package="qemu-system-arm",
    machine="virt,virtualization=on,gic-version=3",
    # KVM uses the virtualization host extensions (VHE) of the first, and is split in two on the second, which has none.
    processors=("max", "cortex-a72"),
    console="ttyAMA0",
    kernel_arguments="mitigations=off",
    modules=(),
    packages=("qemu-system-common",),  # virtiofsd
    kernels={
        **{name: (suite, package.replace("amd64", "arm64")) for name, (suite, package) in STOCK_KERNELS.items()},
        "full": ("bookworm", "linux-image-arm64"),  # it alone has a driver for a power button that is a GPIO's key
    },
    cross_packages=("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
)

ARCHES = {arch.name: arch for arch in (X86_64, AARCH64)}


def arch_named(name: str) -> Arch:
    try:
        return ARCHES[name]
    except KeyError:
        raise KvmHostError(f"no nested host of {name!r}; there are {', '.join(ARCHES)}") from None
