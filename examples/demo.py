"""`make demo`: a stock Debian guest, to a shell. Natively where this machine's KVM can run it, else in the nested host.

    python -m examples.demo             interactive; ctrl-p ctrl-q detaches, `poweroff` ends it
    python -m examples.demo --script    unattended: a few commands, their transcript, power off

This file is both sides: outside it chooses the place, inside (`--here`) it runs the guest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiovmm import architecture
from aiovmm.errors import AiovmmError
from aiovmm.runtime.stdio import fill_standard_descriptors

if TYPE_CHECKING:
    from aiovmm.config import VMConfig

NESTED_GUEST = Path("/guest/6.1")
CMDLINE = f"console={architecture.host().serial} quiet panic=-1"
HOST, GUEST, MASK = "10.78.0.1", "10.78.0.2", "255.255.255.0"
DISK_SIZE = 64 << 20
VSOCK_PORT = 2048  # of the guest's connection to CID 2, which arrives at the unix socket `vsock_2048`
HVC_GREETING = "hello from hvc0"
SCRIPT = ("uname -a", "nproc", "free -m", "df -h /mnt", "ip address show eth0", "cat /proc/interrupts")
PROMPT = rb"guest:\S+ ?[#$] "
BANNER = f"""
echo "This is $(uname -sr) in aiovmm. What it has of virtio:"
[ -b /dev/vda ] && mke2fs /dev/vda >/dev/null 2>&1 && mount -t ext4 /dev/vda /mnt &&
  echo "  disk: $(($(cat /sys/block/vda/size) / 2048)) MiB, mounted at /mnt"
if [ -d /sys/class/net/eth0 ]; then
  ip address add {GUEST}/24 dev eth0; ip link set eth0 up
  ping -c 1 -W 5 {HOST} >/dev/null && echo "  network: the host answers at {HOST}"
fi
echo "  entropy: $(cat /sys/class/misc/hw_random/rng_current), $(dd if=/dev/hwrng bs=8 count=1 2>/dev/null | od -An -tx1)"
answer=$(echo "guest $(uname -r)" | socat -t 10 - VSOCK-CONNECT:2:{VSOCK_PORT}) && echo "  socket: $answer"
[ -c /dev/hvc0 ] && echo "{HVC_GREETING}" > /dev/hvc0 && echo "  console: hvc0, beside this one, is written to"
echo "poweroff ends it."
"""
PROFILE = f"""PS1='\\h:\\w\\$ '
export PS1
if [ ! -f /run/greeted ]; then
touch /run/greeted
{BANNER}
fi
"""


def runs_stock_kernels() -> bool:
    """Whether this machine's own KVM can."""
    from aiovmm.kvm import Kvm

    try:
        with Kvm.open() as kvm:
            return not kvm.emulates_guest_code()
    except AiovmmError as exc:
        print(f"demo: no usable KVM here: {exc}", file=sys.stderr)
        return False


def make_images(directory: Path) -> tuple[Path, Path]:
    """Kernel and initramfs of the guest."""
    from aiovmm.image import build_initramfs, debian_busybox, find_kernel

    kernel: Path
    modules: Path | None
    if (NESTED_GUEST / "vmlinuz").exists():
        kernel, modules = NESTED_GUEST / "vmlinuz", NESTED_GUEST / "modules"
    else:
        found = find_kernel()
        kernel, modules = found.kernel, found.modules
    initramfs = directory / "initramfs.cpio"
    files: dict[str, str | os.PathLike[str] | bytes] = {"/etc/profile": PROFILE.encode(), **socat()}
    image = build_initramfs(busybox=debian_busybox(), modules=modules, files=files)
    initramfs.write_bytes(image.data)
    return kernel, initramfs


def socat() -> dict[str, Path]:
    """For the guest: socat of this machine with its libraries, since busybox has nothing that speaks vsock."""
    program = shutil.which("socat")
    if program is None:
        print("demo: without a word over vsock: socat is missing (apt-get install socat)", file=sys.stderr)
        return {}
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return {"/bin/socat": Path(program).resolve(), **{n: Path(n).resolve() for n in re.findall(r"(/\S+) \(", needed)}}


class Answering(socketserver.StreamRequestHandler):
    """The host's program behind the guest's vsock: an ordinary one at a unix socket."""

    def handle(self) -> None:
        """One line in, one line out."""
        self.wfile.write(b"the host has heard of %s over vsock\n" % self.rfile.readline(1000).strip())


@contextmanager
def answering(directory: Path) -> Iterator[None]:
    """Answers who connects to port VSOCK_PORT of the host, in a thread."""
    with socketserver.ThreadingUnixStreamServer(str(directory / f"vsock_{VSOCK_PORT}"), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def devices(directory: Path) -> list[str]:
    """Options for a device of each kind; the network only for those who may make one."""
    disk = directory / "disk.img"
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    options = ["--disk", f"path={disk}", "--rng", "src=/dev/urandom", "--console", "null"]
    options += ["--vsock", f"cid=3,socket={directory / 'vsock'}"]
    if os.geteuid() == 0 and os.access("/dev/net/tun", os.W_OK):
        return [*options, "--net", f"tap=,ip={HOST},mask={MASK}"]
    print("demo: without network: only root can make a TAP", file=sys.stderr)
    return options


def config_from(options: list[str], kernel: Path, initramfs: Path) -> VMConfig:
    """The same options as a configuration."""
    from aiovmm.config import ConsoleConfig, PayloadConfig, VMConfig
    from aiovmm.config import options as parse

    pairs = dict(zip(options[::2], options[1::2], strict=True))
    return VMConfig(
        PayloadConfig(kernel, initramfs, CMDLINE),
        disks=(parse.parse_disk(pairs["--disk"]),),
        nets=(parse.parse_net(pairs["--net"]),) if "--net" in pairs else (),
        vsock=parse.parse_vsock(pairs["--vsock"]),
        console=ConsoleConfig(),
        name="demo",
    )


async def script(config: VMConfig) -> int:
    """The unattended session; what the guest printed is the transcript."""
    import aiovmm

    async with aiovmm.VM(config) as vm:
        await vm.start()
        await vm.serial.expect(PROMPT, timeout=180)
        for command in SCRIPT:
            vm.serial.write(command.encode() + b"\n")
            await vm.serial.expect(PROMPT, timeout=60)
        vm.serial.write(b"poweroff\n")
        status = await vm.wait()
        print(vm.serial.history.decode(errors="replace"))
        print("demo: on hvc0 arrived:", vm.console.history.decode(errors="replace").strip() or "nothing")
        print(f"demo: the guest ended: {status.reason.value} ({status.detail})")
    return 0 if status.ok else 1


def run_here(unattended: bool) -> int:
    """Run the guest with this machine's KVM."""
    with tempfile.TemporaryDirectory(prefix="aiovmm-demo-") as name, answering(Path(name)):
        kernel, initramfs = make_images(Path(name))
        options = devices(Path(name))
        if unattended:
            return asyncio.run(script(config_from(options, kernel, initramfs)))
        print("demo: ctrl-p ctrl-q detaches; `poweroff` in the guest ends it", file=sys.stderr)
        command = [sys.executable, "-m", "aiovmm", "run", "--kernel", str(kernel), "--initramfs", str(initramfs)]
        command += ["--cmdline", CMDLINE, "--name", "demo", "--serial", "tty", *options]
        return subprocess.run(command, check=False).returncode


def run_nested(unattended: bool) -> int:
    """Run this file in the nested host."""
    print("demo: booting the guest in the nested KVM host (QEMU emulates AMD-V; slow, but a true KVM)", file=sys.stderr)
    root = Path(__file__).resolve().parent.parent
    inside = ["python", "-m", "examples.demo", "--here"] + (["--script"] if unattended else [])
    options = ["--timeout", "300"] if unattended else ["--tty"]
    command = [sys.executable, "-m", "tests.kvmhost", "run", *options, "--cwd", "/root/aiovmm", "--", *inside]
    return subprocess.run(command, cwd=root, check=False).returncode


def main() -> int:
    """Entry point."""
    fill_standard_descriptors()
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.split("\n")[0])
    parser.add_argument("--script", action="store_true", help="unattended: run a few commands and show the transcript")
    parser.add_argument("--here", action="store_true", help="use this machine's KVM, whatever it is")
    args = parser.parse_args()
    try:
        if args.here or runs_stock_kernels():
            if "AIOVMM_KVMHOST" not in os.environ:
                print("demo: booting the guest on this machine's KVM", file=sys.stderr)
            return run_here(args.script)
        return run_nested(args.script)
    except AiovmmError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
