"""Debian's Bochs and what makes a CD to boot in it, unpacked from the archive; and the file that tells Bochs of the machine."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from tests.debian import Archive, Unpacked

# In sid's 3.1 Linux stops at a division by zero in the first clock source that it registers, whatever the processor's model.
SUITE = "bookworm"
PACKAGES = ("bochs", "bochs-term", "bochsbios", "vgabios", "isolinux", "syslinux-common", "xorriso")
MEMORY_MIB = 2048
_INSTRUCTIONS_A_SECOND = 100_000_000  # of the guest's time: about what it does on a machine of today


def ensure_bochs(cache: Path) -> Unpacked:
    """The unpacked packages, fetched if they are not there. ArchiveError."""
    directory = cache / hashlib.sha256(json.dumps([SUITE, PACKAGES]).encode()).hexdigest()[:16]
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as name:
            Archive(SUITE, Path(name, "apt")).unpack_with_dependencies(PACKAGES, Path(name, "root"))
            Path(name, "root").rename(directory)
    return Unpacked(directory)


def environment(bochs: Unpacked) -> dict[str, str]:
    return {
        "BXSHARE": str(bochs.root / "usr/share/bochs"),
        "LTDL_LIBRARY_PATH": str(bochs.root / "usr/lib/x86_64-linux-gnu/bochs/plugins"),
        "TERM": "xterm",
    }


def configuration(bochs: Unpacked, disk: Path, cpus: int) -> str:
    """Of a machine with a Skylake's VMX. Files are in the working directory, but for the disk image, which stays as it is."""
    firmware = bochs.root / "usr/share"
    return f"""config_interface: textconfig
display_library: term
cpu: model=corei7_skylake_x, count={cpus}, ips={_INSTRUCTIONS_A_SECOND}, reset_on_triple_fault=0
memory: guest={MEMORY_MIB}, host={MEMORY_MIB}
romimage: file={firmware}/bochs/BIOS-bochs-latest
vgaromimage: file={firmware}/vgabios/vgabios.bin
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={disk}, mode=volatile, journal=changes, cylinders=0
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
clock: sync=none, time0=local
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=file, dev=output
speaker: enabled=0
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
"""


def make_cd(bochs: Unpacked, kernel: Path, initramfs: bytes, arguments: str, place: Path) -> None:
    """`place`/boot.iso, which boots `kernel`."""
    tree = place / "cd"
    tree.mkdir()
    (tree / "vmlinuz").write_bytes(kernel.read_bytes())
    (tree / "initrd").write_bytes(initramfs)
    for name in ("ISOLINUX/isolinux.bin", "syslinux/modules/bios/ldlinux.c32"):
        (tree / Path(name).name).write_bytes((bochs.root / "usr/lib" / name).read_bytes())
    entry = f"DEFAULT linux\nPROMPT 0\nLABEL linux\n KERNEL vmlinuz\n APPEND initrd=initrd {arguments}\n"
    (tree / "isolinux.cfg").write_text(entry)
    boot = ("-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    bochs.call("usr/bin/xorriso", "-as", "mkisofs", "-quiet", "-o", str(place / "boot.iso"), *boot, str(tree))
