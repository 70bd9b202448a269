"""The initramfs at work: Debian's kernel with our init in QEMU's instruction emulator, used as a person would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiovmm.errors import ImageError
from aiovmm.image import KernelFiles, build_initramfs, debian_busybox, debian_kernel
from tests.debian.stock import STOCK_KERNELS, stock_kernel_or_skip
from tests.limits import HANGS

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 (qemu-system-x86)"),
    pytest.mark.timeout(
        900
    ),  # what hangs: on a busy machine a boot of three seconds was seen to wait for its turn for minutes
]
PROMPT = rb"guest:(/root|~)# (\x1b\[6n)?$"  # as BusyBox 1.35 and 1.37 have it; Debian's asks the terminal where the cursor is


class Guest:
    """A running QEMU: its serial line as a stream, and its monitor socket."""

    def __init__(self, files: KernelFiles, initramfs: Path, cmdline: str, options: tuple[str, ...]) -> None:
        self.qmp = initramfs.parent / "qmp"
        machine = ["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot"]
        host = ["-display", "none", "-serial", "stdio", "-qmp", f"unix:{self.qmp},server,nowait"]
        boot = ["-kernel", str(files.kernel), "-initrd", str(initramfs), "-append", f"console=ttyS0 quiet {cmdline}"]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", *machine, *host, *boot, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.seen = b""

    def expect(self, pattern: bytes, timeout: float = 600) -> bytes:
        """Read until `pattern` matches what came since the last match; returns all up to its end."""
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(fd, 65536) if ready else b""
            assert data, f"no {pattern!r}; the guest said {self.seen[-2000:]!r}; {self.found_at()}"
            self.seen += data
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def type(self, keys: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(keys)
        self.process.stdin.flush()

    def run(self, command: str) -> str:
        """Output of a command typed at the prompt."""
        self.type(command.encode() + b"\n")
        text = self.expect(rb"\n[^\n]*" + PROMPT).decode()
        return "\n".join(text.splitlines()[1:-1])

    def press_power_button(self) -> None:
        self.ask("system_powerdown")

    def ask(self, command: str, **arguments: str) -> str:
        """What the monitor answers."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(20)
            s.connect(str(self.qmp))
            with s.makefile("rw") as monitor:
                for name, given in (("qmp_capabilities", {}), (command, arguments)):
                    monitor.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                    monitor.flush()
                    while "return" not in (said := json.loads(monitor.readline())):
                        assert "error" not in said, said
                return str(said["return"])

    def found_at(self) -> str:
        """What a guest that has fallen silent is doing: whether it halts (HLT=1) or works, where, and what time it had for it."""
        if self.process.poll() is not None:
            return f"QEMU has ended with {self.process.returncode}"
        used, waited = _scheduled(self.process.pid)
        try:
            registers = self.ask("human-monitor-command", **{"command-line": "info registers"})
        except (OSError, ValueError) as error:  # it may be that which hangs
            registers = f"its monitor does not answer ({error})"
        return f"QEMU had {used / 1e9:.1f} s of a processor and waited {waited / 1e9:.1f} s for one: {registers[:800]}"

    def gone(self) -> bool:
        """It powered off by itself, with no error."""
        self.expect(rb"reboot: (Power down|Restarting system)")
        return self.process.wait(HANGS) == 0


def _scheduled(process: int) -> tuple[int, int]:
    """Nanoseconds that its threads have run, and have waited to."""
    used = waited = 0
    for thread in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it may have ended
            ran, was_ready, _ = map(int, (thread / "schedstat").read_text().split())
            used, waited = used + ran, waited + was_ready
    return used, waited


@pytest.fixture
def kernel() -> str:
    """The kernel to boot: this machine's release's, or one of the stock ones."""
    return "of this release"


@pytest.fixture
def files(kernel: str) -> KernelFiles:
    if kernel != "of this release":
        return stock_kernel_or_skip(kernel)
    try:
        return debian_kernel()
    except ImageError as exc:
        pytest.skip(f"no Debian kernel: {exc}")


Boot = Callable[..., Guest]


@pytest.fixture
def boot(files: KernelFiles, tmp_path: Path) -> Iterator[Boot]:
    guests: list[Guest] = []

    def start(cmdline: str = "", *options: str, run: str | None = None, compression: str = "none") -> Guest:
        image = build_initramfs(busybox=debian_busybox(), modules=files.modules, run=run, compression=compression)
        (tmp_path / "initramfs").write_bytes(image.data)
        guests.append(Guest(files, tmp_path / "initramfs", cmdline, options))
        return guests[-1]

    yield start
    for guest in guests:
        guest.process.kill()
        guest.process.communicate()


@pytest.mark.parametrize("kernel", STOCK_KERNELS)
def test_interactive_session(boot: Boot) -> None:
    guest = boot("", "-device", "virtio-rng-pci", "-device", "virtio-net-pci")
    guest.expect(PROMPT)
    assert guest.run("tty") == "/dev/ttyS0"
    assert guest.run("stty size") == "24 80"
    assert guest.run("echo $((6 * 7)) $HOME $(hostname)") == "42 /root guest"
    guest.type(b"sh -c 'echo started; sleep 1000'\n")
    guest.expect(rb"\nstarted\r\n")
    guest.type(b"\x03")
    guest.expect(PROMPT)
    guest.type(b"sh -c 'echo started; sleep 1000'\n")
    guest.expect(rb"\nstarted\r\n")
    guest.type(b"\x1a")
    guest.expect(rb"Stopped[^#]*" + PROMPT)
    guest.run("kill -9 %1; wait %1")
    guest.run("true")  # the shell may tell of the job at one prompt more
    assert guest.run("mount | grep -cE '^(proc|sys|dev|pts|tmpfs) '") == "7"
    loaded = guest.run("lsmod").split()
    assert {"virtio_rng", "virtio_net", "button", "evdev"} <= set(loaded), "drivers of the devices there"
    assert "virtio_blk" not in loaded, "and only those"
    assert guest.run("cat /proc/sys/kernel/modprobe") == "/sbin/modprobe"
    assert guest.run("modprobe nd_pmem && grep -c ^nd_pmem /proc/modules") == "1"
    guest.type(b"exit\n")
    guest.expect(rb"exit[^#]*" + PROMPT)
    guest.type(b"poweroff\n")
    assert guest.gone()


def test_power_button(boot: Boot) -> None:
    guest = boot("aiovmm.hostname=guest")
    guest.expect(PROMPT)
    guest.press_power_button()
    assert guest.gone()


def test_power_button_while_a_command_runs(boot: Boot) -> None:
    guest = boot('aiovmm.run="echo started; sleep 1000"')
    guest.expect(rb"started")
    guest.press_power_button()
    assert guest.gone()


def test_command_given_on_the_kernel_command_line(boot: Boot) -> None:
    guest = boot('aiovmm.run="echo one two; tty; false" aiovmm.then=reboot', compression="zstd")
    text = guest.expect(rb"aiovmm: run end status=(\d+)\s").decode()
    assert re.search(
        r"aiovmm: init\r\n.*aiovmm: run begin\r\none two\r\n/dev/ttyS0\r\naiovmm: run end status=1\r$", text, re.S
    )
    assert guest.gone()


def test_command_baked_in(boot: Boot) -> None:
    guest = boot("aiovmm.then=shell", run="echo 'it\"s baked in'; exit 7", compression="lz4")
    guest.expect(rb'it"s baked in\r\naiovmm: run end status=7')
    guest.expect(PROMPT)
    assert guest.run("grep -l 214748364[7] /proc/[0-9]*/cmdline | wc -l") == "1", (
        "one holds the one console, also after a command's session"
    )
    guest.type(b"reboot -f\n")
    assert guest.gone()


def test_a_guest_that_falls_silent_is_described(boot: Boot) -> None:
    guest = boot('aiovmm.run="sleep 1000"')
    guest.expect(rb"aiovmm: run begin")
    with pytest.raises(AssertionError, match=r"(?s)no b'never'; .*QEMU had \d+\.\d s of a processor .*HLT=[01]"):
        guest.expect(rb"never", timeout=0.1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with an init that says of what it is a part, and powers off."""
    root = tmp_path / "root"
    for directory in ("bin", "dev", "proc", "sys", "run", "sbin"):
        (root / directory).mkdir(parents=True)
    shutil.copy(debian_busybox(), root / "bin/busybox")
    script = "#!/bin/busybox sh\nset -- $(/bin/busybox grep ' / [^r]' /proc/mounts)\n/bin/busybox echo root is $1 $3 ${4%%,*}\n"
    (root / "sbin/init").write_text(script + "/bin/busybox poweroff -f\n")
    (root / "sbin/init").chmod(0o755)
    return root


UUID = "6d0f2f0c-5a0e-4c5e-9d5b-0d6c1f6f2a11"


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ("root=/dev/vda rootfstype=ext4 ro", "ro"),
        (f"root=UUID={UUID}", "rw"),
        ('root="LABEL=its-name" rootfstype=ext4 ro', "ro"),
        ("root=/dev/vda init=/sbin/../sbin/init", "rw"),
    ],
)
def test_root_on_a_disk(boot: Boot, root: Path, tmp_path: Path, options: str, mode: str) -> None:
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs (package e2fsprogs)")
    disk = tmp_path / "disk"
    names = ("-U", UUID, "-L", "its-name")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *names, "-d", root, disk, "16M"], check=True, timeout=60)
    guest = boot(options, "-drive", f"file={disk},if=virtio,format=raw")
    guest.expect(rb"root is /dev/vda ext4 " + mode.encode())
    assert guest.gone()


def test_root_without_its_init(boot: Boot, root: Path, tmp_path: Path) -> None:
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs (package e2fsprogs)")
    disk = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, disk, "16M"], check=True, timeout=60)
    guest = boot("root=/dev/vda init=/bin/none", "-drive", f"file={disk},if=virtio,format=raw")
    guest.expect(rb"aiovmm: no /bin/none in /dev/vda; here is a shell instead")
    guest.expect(PROMPT)
    assert guest.run("grep -c sysroot /proc/mounts") == "0"


def test_root_that_does_not_come(boot: Boot) -> None:
    guest = boot("root=LABEL=none")
    guest.expect(rb"aiovmm: waiting for LABEL=none")
    guest.expect(rb"aiovmm: cannot mount LABEL=none; here is a shell instead")
    guest.expect(PROMPT)


VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")


@pytest.mark.skipif(not VIRTIOFSD.exists() or os.geteuid() != 0, reason="no virtiofsd of QEMU's, or no root to run it")
def test_root_in_a_directory_of_the_host(boot: Boot, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "fs"
    daemon = subprocess.Popen(
        [VIRTIOFSD, f"--socket-path={path}", "-o", f"source={root}", "-o", "sandbox=chroot"], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        guest = boot(
            *("root=host rootfstype=virtiofs", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"),
            *("-machine", "memory-backend=ram", "-chardev", f"socket,id=fs,path={path}"),
            *("-device", "vhost-user-fs-pci,chardev=fs,tag=host"),
        )
        text = guest.expect(rb"root is host virtiofs rw")
        assert b"waiting" not in text, "for a disk of that name"
        assert guest.gone()
    finally:
        daemon.kill()
        daemon.wait()
