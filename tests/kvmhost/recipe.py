"""What goes into the disk image, and the key that names an image made of it."""

from __future__ import annotations

import hashlib
import json
import pathlib
from dataclasses import asdict, dataclass, field

from tests.debian.stock import STOCK_KERNELS

from .settings import PYTHON_IN_HOST, PYTHON_VERSION

SUITE = "bookworm"

# Beside the project's own requirements: to install a built wheel of it in the host.
TOOL_REQUIREMENTS = ("pip",)

PACKAGES = (
    "python3",
    "busybox-static",
    "qemu-system-x86",  # the peer in benchmarks; brings virtiofsd
    "qemu-utils",  # qemu-img, qemu-io, qemu-storage-daemon
    "iproute2",
    "iputils-ping",
    "kmod",
    "e2fsprogs",
    "socat",
    "tmux",
    "pciutils",
    "strace",
    "ethtool",
    "iperf3",
    "procps",
    "psmisc",
    "lsof",
    "xz-utils",
    "zstd",
    "lz4",
    "bzip2",
    "lzop",
    "less",
    "acpica-tools",  # iasl
    "tcpdump",
    "dnsmasq-base",
    "netcat-openbsd",
    # DPDK's testpmd, which the hook takes out of its package: the drivers that it is to have, then what it is linked with
    *("librte-net-vhost23", "librte-net-tap23", "librte-mempool-ring23"),
    *(
        "librte-bitratestats23",
        "librte-bpf23",
        "librte-cmdline23",
        "librte-crypto-scheduler23",
        "librte-gro23",
        "librte-gso23",
    ),
    *("librte-latencystats23", "librte-net-bnxt23", "librte-net-bond23", "librte-net-dpaa23", "librte-net-i40e23"),
    *("librte-net-ice23", "librte-net-ixgbe23", "librte-net-mlx5-23", "librte-pdump23"),
)

HOST_KERNEL = "6.1"
OPTIONAL_KERNELS = ("newest",)  # an image may be without, where their archive cannot be reached
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")


@dataclass(frozen=True)
class Recipe:
    """All that decides what an image holds, but for the versions its mirror has on the day."""

    requirements: list[str]
    hook: str  # the script that finishes the root file system
    suite: str = SUITE
    packages: tuple[str, ...] = PACKAGES
    kernels: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(STOCK_KERNELS))
    boot_modules: tuple[str, ...] = BOOT_MODULES
    disk_gib: int = 16  # sparse: room for tests' own disk images

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def mmdebstrap_command(recipe: Recipe, stage: pathlib.Path, settings: list[str]) -> list[str]:
    """The command that makes the root file system and, in its hook, the disk image in `stage`.

    All happens in the hook, so that it works the same as root and in an unprivileged user namespace, where the
    tree belongs to nobody outside. It reads apt sources from standard input and keeps no tree; `settings` are for its apt.
    """
    excluded = ("doc", "man", "locale", "info", "lintian")
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--format=null",
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={setting}" for setting in settings),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        f"--include={','.join(recipe.packages)}",
        f'--customize-hook=sh {stage}/hook.sh "$1" {stage} {recipe.disk_gib}',
        recipe.suite,
        "/dev/null",
        "-",
    ]


def virtual_environment() -> dict[str, str]:
    """Files and `->` symlinks that make PYTHON_IN_HOST a virtual environment of the host's own Python (PEP 405)."""
    return {
        f"{PYTHON_IN_HOST}/pyvenv.cfg": (
            f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON_VERSION}\n"
        ),
        f"{PYTHON_IN_HOST}/bin/python3": "-> /usr/bin/python3",
        f"{PYTHON_IN_HOST}/bin/python": "-> python3",
        f"{PYTHON_IN_HOST}/bin/python{PYTHON_VERSION}": "-> python3",
    }
