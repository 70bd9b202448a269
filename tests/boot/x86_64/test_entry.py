"""A stock kernel accepts the boot state: QEMU's instruction emulator, given guest memory as we fill it and a processor as we
describe it, boots Debian's kernel to our init. Needs no KVM; the state is loaded by a small ROM (reset.S) in place of firmware.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiovmm.boot.x86_64 import CpuState, KernelImage, layout, load_kernel, ram_ranges, setup_linux
from aiovmm.errors import ImageError
from aiovmm.image import Initramfs, build_initramfs, debian_busybox
from aiovmm.memory import GuestMemory
from tests.debian.stock import STOCK_KERNELS, stock_kernel_or_skip

RAM_SIZE = 256 << 20
ROM_BASE = 0xFFFF0000
COMMAND = """
echo "kernel $(uname -r)"
echo $(cut -d" " -f1 /proc/modules | sort)
awk '/MemTotal/ { print "mem", $2 }' /proc/meminfo
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 (qemu-system-x86)"),
    pytest.mark.skipif(shutil.which("as") is None, reason="no assembler (binutils)"),
]


@dataclass
class Guest:
    kernel: Path
    initramfs: Initramfs


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest) -> Guest:
    files = stock_kernel_or_skip(request.param)
    try:
        busybox = debian_busybox()
    except ImageError as exc:
        pytest.skip(f"no busybox: {exc}")
    assert files.modules is not None
    return Guest(files.kernel, build_initramfs(busybox=busybox, modules=files.modules, run=COMMAND))


def rom(state: CpuState, directory: Path) -> Path:
    values = {
        "ROM": ROM_BASE,
        "CR0": state.cr0,
        "CR3": state.cr3,
        "CR4": state.cr4,
        "EFER": state.efer,
        "CS": state.cs.selector,
        "DS": state.ds.selector,
        "RSP": state.rsp,
        "RSI": state.rsi,
        "RBX": state.rbx,
        "RIP": state.rip,
        "GDT_BASE": state.gdt.base,
        "GDT_LIMIT": state.gdt.limit,
        "IDT_BASE": state.idt.base,
        "IDT_LIMIT": state.idt.limit,
    }
    source = Path(__file__).with_name("reset.S")
    symbols = [f"--defsym={name}={value:#x}" for name, value in values.items()]
    subprocess.run(["as", "--32", *symbols, "-o", directory / "rom.o", source], check=True, timeout=20)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", directory / "rom.o", directory / "rom"], check=True, timeout=20
    )
    return directory / "rom"


def boot(kernel: KernelImage, initramfs: bytes, directory: Path) -> str:
    """What the guest prints on its serial port until it powers off."""
    ram = ram_ranges(RAM_SIZE)
    memory = GuestMemory.create(ram)
    try:
        kernel.load_into(memory)
        # no ACPI tables here, and an i440FX of QEMU's instead of our machine: interrupts by the PIC, reset by the i8042
        cmdline = "console=ttyS0 acpi=off noapic reboot=k panic=-1 quiet aiovmm.then=reboot"
        state = setup_linux(memory, kernel, cmdline, initramfs, ram, 0, reserved=())
        pieces = {0: layout.LOW_RAM_END, layout.HIGH_RAM: RAM_SIZE - layout.HIGH_RAM}
        loaders = []
        for gpa, size in pieces.items():
            path = directory / f"ram-{gpa:x}"
            path.write_bytes(memory.slice(gpa, size))
            loaders += ["-device", f"loader,file={path},addr={gpa:#x},force-raw=on"]
    finally:
        memory.close()
    machine = ["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", f"{RAM_SIZE >> 20}", "-nodefaults", "-no-reboot"]
    output = ["-display", "none", "-serial", "stdio"]
    command = ["qemu-system-x86_64", *machine, *output, "-bios", str(rom(state, directory)), *loaders]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=140)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def case(kernel: str, how: str) -> object:
    """All kernels one way, and one of them all ways: the rest is thorough."""
    usual = how == "bzImage" or kernel == "newest"
    return pytest.param(kernel, how, marks=() if usual else pytest.mark.thorough, id=f"{kernel}-{how}")


HOW = ("bzImage", "vmlinux by PVH", "bzImage that unpacks itself")


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("guest", "how"), [case(kernel, how) for kernel in STOCK_KERNELS for how in HOW], indirect=["guest"]
)
def test_stock_kernel_boots(how: str, guest: Guest, tmp_path: Path) -> None:
    kernel = load_kernel(guest.kernel, unpack="itself" not in how)
    if "PVH" in how:
        (tmp_path / "vmlinux").write_bytes(Path(kernel.source.path).read_bytes())  # type: ignore[attr-defined]
        kernel = load_kernel(tmp_path / "vmlinux")
    text = boot(kernel, guest.initramfs.data, tmp_path)
    release = guest.initramfs.release
    assert "aiovmm: init" in text, text[-2000:]
    assert f"kernel {release}" in text
    assert "button evdev" in text, "modules were loaded"
    assert "aiovmm: run end status=0" in text
    memory = int(text.split("mem ")[1].split()[0])
    assert (RAM_SIZE >> 10) * 0.75 < memory < RAM_SIZE >> 10
