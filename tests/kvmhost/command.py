"""The QEMU command line of a nested host: AMD-V or EL2 emulated by TCG, so that the Linux inside has a true KVM."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

from .agent import PORT_NAME
from .qemu import Qemu
from .settings import Profile, Size

# Said to the tests inside by the host's kernel command line, where its QEMU is one under which Linux 7 does not boot.
NOT_THE_NEWEST_KERNEL = "kvmhost.not_the_newest_kernel"


@dataclass(frozen=True)
class BootFiles:
    kernel: pathlib.Path
    initramfs: pathlib.Path
    disk: pathlib.Path


def machine_name(profile: Profile) -> str:
    """The name a host's process carries, by which it is told from whatever reuses its process id."""
    return f"aiovmm-kvmhost-{profile.name}"


def qemu_command(qemu: Qemu, profile: Profile, size: Size, files: BootFiles, measured: str = "") -> list[str]:
    """The daemon's command line, to be run in the host's own directory: sockets, logs and disks are relative to it. `measured` is
    what its kernel is told of this machine."""
    arch = profile.arch
    told = NOT_THE_NEWEST_KERNEL if qemu.notice and arch.newest_needs else ""
    arguments = (
        f"console={arch.console} panic=-1 quiet",
        arch.kernel_arguments,
        profile.kernel_arguments,
        told,
        measured,
    )
    return [
        *qemu.command,
        *("-name", machine_name(profile)),
        *("-M", ",".join(filter(None, (arch.machine, profile.machine)))),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", profile.processor),
        *("-smp", str(size.cpus)),
        *("-m", f"{size.memory >> 20}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(files.kernel)),
        *("-initrd", str(files.initramfs)),
        *("-append", " ".join(filter(None, arguments))),
        # The image stays as built: what the host writes goes to an unnamed file that ends with it.
        *("-drive", f"file={files.disk},if=none,id=root,format=raw,cache=unsafe,discard=unmap,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
        *("-chardev", "file,id=console,path=console.log"),
        *("-serial", "chardev:console"),
        *("-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *profile.devices,
        *("-pidfile", "pid", "-daemonize"),
    ]
