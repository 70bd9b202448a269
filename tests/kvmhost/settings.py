"""Where the nested host keeps its files and what kinds of host there are."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .arch import AARCH64, X86_64, Arch, arch_named
from .errors import KvmHostError

PROJECT = pathlib.Path(__file__).resolve().parents[2]
PROJECT_IN_HOST = "/root/aiovmm"
PYTHON_IN_HOST = "/opt/aiovmm"  # a virtual environment
PYTHON_VERSION = "3.11"  # of the release that the image is made of (recipe.SUITE)
SITE_PACKAGES = f"lib/python{PYTHON_VERSION}/site-packages"
_GIB = 1 << 30


def cache_directory(env: Mapping[str, str]) -> pathlib.Path:
    """`$AIOVMM_CACHE/kvmhost`, by default `~/.cache/aiovmm/kvmhost` (XDG Base Directory)."""
    base = env.get("AIOVMM_CACHE")
    if not base:
        root = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if root.startswith("~"):
            raise KvmHostError("this user has no home directory: set AIOVMM_CACHE to where the nested host may be kept")
        base = os.path.join(root, "aiovmm")
    return pathlib.Path(base).absolute() / "kvmhost"


@dataclass(frozen=True)
class Disk:
    """An empty disk made anew, beside the host's own, at each start. `size` in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Profile:
    """A nested host: its architecture and processor, and what its machine has beyond the common ground of command.py."""

    kind: str = "default"
    arch: Arch = X86_64
    processor: str = "max"
    machine: str = ""  # options beside the architecture's
    devices: tuple[str, ...] = ()  # further QEMU arguments; disks appear as files of their name
    disks: tuple[Disk, ...] = ()
    kernel_arguments: str = ""
    modules: tuple[str, ...] = ()  # modprobe arguments, run at boot after the common ones
    iommufd: bool = False  # booted by the kernel of iommufd.py

    @property
    def name(self) -> str:
        """Its own among all hosts: of what is not the usual."""
        parts = (
            self.arch.name if self.arch != X86_64 else "",
            self.kind if self.kind != "default" else "",
            self.processor if self.processor != self.arch.processors[0] else "",
        )
        return "-".join(filter(None, parts)) or self.kind


def _network_card(number: int, driver: str) -> tuple[str, ...]:
    """A card on the machine's one hub, with MAC address 52:54:00:00:00:`number`, behind a PCI Express port of its own."""
    return (
        *("-netdev", f"hubport,id=lan{number},hubid=0"),
        *("-device", f"pcie-root-port,id=port{number},chassis={number},slot={number}"),
        *("-device", f"{driver},netdev=lan{number},bus=port{number},mac=52:54:00:00:00:{number:02x}"),
    )


_TO_PASS_THROUGH = (
    *("-drive", "file=nvme.img,if=none,id=nvme,format=raw,cache=unsafe"),
    *("-device", "nvme,drive=nvme,serial=kvmhost-nvme"),
    # Three cards that see each other and nobody else: one for the host to keep, one whose driver takes MSI-X,
    # and one that has INTx alone.
    *_network_card(1, "virtio-net-pci"),
    *_network_card(2, "vmxnet3"),
    *_network_card(3, "virtio-net-pci,vectors=0,disable-legacy=on,iommu_platform=on"),
)
_DISKS = (Disk("nvme.img", _GIB),)

PROFILES = {
    (profile.arch.name, profile.kind): profile
    for profile in (
        Profile(),
        Profile(
            "vfio",
            machine="kernel-irqchip=off",
            devices=("-device", "intel-iommu,intremap=off,caching-mode=on", *_TO_PASS_THROUGH),
            disks=_DISKS,
            kernel_arguments="intel_iommu=on iommu=nopt",
            modules=("vfio_iommu_type1 allow_unsafe_interrupts=1", "vfio-pci"),
        ),
        Profile(
            "iommufd",
            machine="kernel-irqchip=off",
            devices=("-device", "intel-iommu,intremap=off,caching-mode=on", *_TO_PASS_THROUGH),
            disks=_DISKS,
            # The check gives up where the emulator has no processor to be in time with its timer.
            kernel_arguments="intel_iommu=on iommu=nopt no_timer_check",
            modules=("vfio-pci",),
            iommufd=True,
        ),
        Profile(arch=AARCH64),
        Profile(
            "vfio",
            AARCH64,
            machine="iommu=smmuv3",
            devices=_TO_PASS_THROUGH,
            disks=_DISKS,
            modules=("vfio-pci",),
        ),
    )
}


KINDS = tuple(dict.fromkeys(kind for _, kind in PROFILES))


def profile_named(kind: str = "default", arch: str = X86_64.name, processor: str | None = None) -> Profile:
    """The profile of that kind; `processor` is QEMU's name of one of those of the architecture. KvmHostError."""
    wanted = arch_named(arch)
    try:
        profile = PROFILES[arch, kind]
    except KeyError:
        known = ", ".join(name for of, name in PROFILES if of == arch)
        raise KvmHostError(f"no profile {kind!r} of {arch}; there are {known}") from None
    if processor not in (None, *wanted.processors):
        raise KvmHostError(f"no processor {processor!r} of {arch}; there are {', '.join(wanted.processors)}")
    return replace(profile, processor=processor or wanted.processors[0])


_CPUS = 3  # at least, however few the machine has: see default_size


@dataclass(frozen=True)
class Size:
    """The machine's size; memory in bytes."""

    cpus: int
    memory: int


def default_size(cpus: int, memory: int, env: Mapping[str, str]) -> Size:
    """Three or four processors, and 8 GiB of what the machine has, never more than half its memory.

    With two, a third task (a reader of the guest's output) is often woken on the processor that runs a guest. An interrupt from
    another processor in the midst of VMRUN makes the emulated AMD-V of QEMU 7.2 take the host's state for the guest's: by KVM's
    trace events guests entered at their own rip came out of that one VMRUN with the instruction after VMRUN as rip and the host's
    cr3. With two processors 21 of 56 boots ended so in one hour, with three or four none of 44.
    """
    wanted_cpus = env.get("AIOVMM_KVMHOST_CPUS")
    wanted_memory = env.get("AIOVMM_KVMHOST_MEMORY")
    return Size(
        int(wanted_cpus) if wanted_cpus else max(_CPUS, min(4, cpus)),
        parse_size(wanted_memory) if wanted_memory else max(_GIB, min(8 * _GIB, memory // 2 // _GIB * _GIB)),
    )


def parse_size(text: str) -> int:
    """Bytes in "4G", "512M" or "1048576"; KvmHostError if it is none of these."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    if not number.isdigit():
        raise KvmHostError(f"{text!r} is not a size; write it like 4G or 512M")
    return int(number) * unit


def machine_size(env: Mapping[str, str]) -> Size:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return default_size(os.cpu_count() or 1, memory, env)
