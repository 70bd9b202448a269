"""What goes into the disk image, and the key that names an image made of it."""

from __future__ import annotations

import hashlib
import json
import pathlib
from dataclasses import asdict, dataclass

from .arch import Arch
from .settings import PYTHON_IN_HOST, PYTHON_VERSION

SUITE = "bookworm"

# Beside the project's own requirements: to install a built wheel of it in the host.
TOOL_REQUIREMENTS = ("pip",)

PACKAGES = (
    "python3",
    "busybox-static",
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

# What every Debian has, and so no package says that it needs it: to be named where nothing is installed.
ESSENTIAL = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "debianutils",
        "diffutils",
        "findutils",
        "grep",
        "gzip",
    ),
    *(
        "hostname",
        "libc-bin",
        "login",
        "mawk",
        "mount",
        "ncurses-base",
        "ncurses-bin",
        "perl-base",
        "sed",
        "sysvinit-utils",
    ),
    *("tar", "util-linux"),
)

_UNUSED = ("doc", "man", "locale", "info", "lintian")  # of /usr/share; image_hook_foreign.sh has them too
HOST_KERNEL = "6.1"
OPTIONAL_KERNELS = ("newest",)  # an image may be without, where their archive cannot be reached
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")


@dataclass(frozen=True)
class Recipe:
    """All that decides what an image holds, but for the versions its mirror has on the day."""

    requirements: list[str]
    scripts: dict[str, str]  # by file name; hook.sh finishes the root file system
    arch: str
    debian: str  # its name there
    foreign: bool
    packages: tuple[str, ...]
    kernels: dict[str, tuple[str, str]]
    suite: str = SUITE
    boot_modules: tuple[str, ...] = BOOT_MODULES
    disk_gib: int = 16  # sparse: room for tests' own disk images

    @classmethod
    def of(cls, arch: Arch, requirements: list[str], scripts: dict[str, str]) -> Recipe:
        packages = (*PACKAGES, *arch.packages, *(ESSENTIAL if arch.is_foreign else ()))
        return cls(requirements, scripts, arch.name, arch.debian, arch.is_foreign, packages, dict(arch.kernels))

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def mmdebstrap_command(recipe: Recipe, stage: pathlib.Path, settings: list[str]) -> list[str]:
    """The command that makes the root file system and, in its hook, the disk image in `stage`.

    All happens in the hook, so that it works the same as root and in an unprivileged user namespace, where the
    tree belongs to nobody outside. It reads apt sources from standard input and keeps no tree; `settings` are for its apt.
    Packages that this machine cannot run are unpacked and no more, which also makes nothing of the merged /usr.
    """
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNUSED]
    merged = 'for d in bin sbin lib; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d"; done'
    foreign = ("--variant=extract", f"--architectures={recipe.debian}", f"--setup-hook={merged}")
    return [
        "mmdebstrap",
        *(foreign if recipe.foreign else ("--variant=minbase", *excluded)),
        "--format=null",
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={setting}" for setting in settings),
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(recipe.packages)}",
        f'--{"extract" if recipe.foreign else "customize"}-hook=sh {stage}/hook.sh "$1" {stage} {recipe.disk_gib}',
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
