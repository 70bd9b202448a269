"""The same guest under two monitors: its files, their command lines, and a channel for commands on its serial port.

A benchmark of a running guest keeps one of each up, which costs an idle one next to nothing, and lets them work in turn.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from aiovmm import architecture
from aiovmm.image import build_initramfs
from benchmarks.harness import Options, Result, run_rounds
from benchmarks.place import GUESTS
from benchmarks.profile import Profile, Source
from benchmarks.programs import program

__all__ = ["AIOVMM", "QEMU", "Files", "Guest", "aiovmm_command", "both", "compare", "qemu_command"]

AIOVMM, QEMU = "aiovmm", "QEMU q35"
CMDLINE = "console=ttyS0 panic=-1 reboot=k quiet"
BOOT = 120.0  # seconds

_SHELL = """stty -echo
echo "benchmark: ready"
while read -r line; do eval "$line"; echo "benchmark: done $?"; done
"""
_DONE = re.compile(rb"benchmark: done (\d+)\r?\n")

Word = str | os.PathLike[str]


class Files:
    """Kernel and initramfs of a guest that obeys commands, in `folder`. `files` goes into the initramfs as well."""

    def __init__(self, folder: Path, release: str, files: Mapping[str, Word | bytes] | None = None) -> None:
        self.folder = folder
        self.kernel = GUESTS / release / "vmlinuz"
        self.initramfs = folder / "initramfs.cpio"
        content: dict[str, Word | bytes] = {"/bin/traffic": program("traffic"), **(files or {})}
        busybox, modules = GUESTS / "bin/busybox", GUESTS / release / "modules"
        self.initramfs.write_bytes(build_initramfs(busybox=busybox, modules=modules, files=content, run=_SHELL).data)


def aiovmm_program() -> list[str]:
    """The command, as it is installed for this Python."""
    installed = Path(sys.executable).with_name("aiovmm")
    found = str(installed) if installed.exists() else shutil.which("aiovmm")
    return [found] if found else [sys.executable, "-m", "aiovmm"]


def aiovmm_command(
    files: Files, serial: str, devices: Sequence[Word] = (), *, mib: int = 512, cmdline: str = CMDLINE
) -> list[Word]:
    """`aiovmm run`, with nothing that was not asked for. `serial` as its option has it."""
    payload: list[Word] = ["--kernel", files.kernel, "--initramfs", files.initramfs, "--cmdline", cmdline]
    console = () if "--console" in devices else ("--console", "off")
    return [*aiovmm_program(), "run", *payload, "--memory", f"{mib}M", "--serial", serial, *console, *devices]


def qemu_command(
    files: Files,
    serial: str,
    devices: Sequence[Word] = (),
    *,
    mib: int = 512,
    cmdline: str = CMDLINE,
    machine: str = "q35",
) -> list[Word]:
    """QEMU with KVM and nothing that was not asked for. `serial` as its option has it."""
    common: list[Word] = [architecture.host().emulator, "-M", machine, "-accel", "kvm", "-cpu", "host", "-m", str(mib)]
    common += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", serial, "-name", "guest,debug-threads=on"]
    return [*common, "-kernel", files.kernel, "-initrd", files.initramfs, "-append", cmdline, *devices]


class Guest:
    """A running monitor, whose guest's serial port is at the unix socket `place`. Leaving ends it."""

    def __init__(self, name: str, command: Sequence[Word], place: Path) -> None:
        self.name = name
        self._command = [str(word) for word in command]
        self._place = place
        self._seen = b""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.log = self._place.with_suffix(".log")
            output = stack.enter_context(self.log.open("wb"))
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(self._end)
            self._socket = stack.enter_context(connect(self._place, self._alive))
            self.until(re.compile(rb"benchmark: ready\r?\n"), BOOT)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """Of the monitor."""
        return self.process.pid

    def run(self, command: str, timeout: float = 60.0) -> str:
        """What a line of shell in the guest prints. Raises RuntimeError if it fails, TimeoutError."""
        self.begin(command)
        return self.end(timeout)

    def begin(self, command: str) -> None:
        """Have the guest begin with a line of shell; `end` waits for it."""
        self._command_line = command
        self._socket.sendall(command.encode() + b"\n")

    def end(self, timeout: float = 60.0) -> str:
        """What it has printed. Raises as `run` does."""
        output, status = self.until(_DONE, timeout)
        text = output.decode(errors="replace").replace("\r", "")
        if status[1] != b"0":
            raise RuntimeError(f"{self.name}: {self._command_line!r} ended with {status[1].decode()}: {text}")
        return text

    def result(self, command: str, timeout: float = 60.0) -> float:
        """The number in the line `result NUMBER`."""
        text = self.run(command, timeout)
        found = re.search(r"^result (\S+)$", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{self.name}: {command!r} gave no result: {text}")
        return float(found[1])

    def print_dots(self, device: str, count: int, output: socket.socket | None = None, timeout: float = 120.0) -> float:
        """Seconds from a command that prints so many dots on `device` until all are here, at `output` or the serial port."""
        reader = output or self._socket
        reader.settimeout(timeout)
        began = time.monotonic()
        self._socket.sendall(f"traffic print {device} {count}\n".encode())
        rest = b""
        while count > 0:
            rest = reader.recv(1 << 18)
            count -= rest.count(b".")
        took = time.monotonic() - began
        if output is None:
            self._seen += rest.lstrip(b".")
        self.until(_DONE, timeout)
        return took

    def until(self, pattern: re.Pattern[bytes], timeout: float) -> tuple[bytes, re.Match[bytes]]:
        """What the guest prints before what `pattern` finds, and that. Raises RuntimeError, TimeoutError."""
        deadline = time.monotonic() + timeout
        while (found := pattern.search(self._seen)) is None:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise TimeoutError(f"{self.name}: no {pattern.pattern!r} in {self._seen[-500:]!r}") from None
            if not data:
                raise RuntimeError(f"{self.name} ended: {self._seen[-500:]!r} {self.log.read_text()[-500:]}")
            self._seen += data
        before, self._seen = self._seen[: found.start()], self._seen[found.end() :]
        return before, found

    def _alive(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {self.log.read_text()[-1000:]}")

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()


def connect(place: Path, check: object = None, timeout: float = 60.0) -> socket.socket:
    """A connection to the unix socket at `place`, as soon as something listens there."""
    deadline = time.monotonic() + timeout
    while True:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(str(place))
            return stream
        except (FileNotFoundError, ConnectionRefusedError):
            stream.close()
            if callable(check):
                check()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def both(files: Files, ours: Sequence[Word] = (), qemus: Sequence[Word] = (), *, mib: int = 512) -> tuple[Guest, Guest]:
    """A guest of QEMU's and one of ours, not yet running, with these devices."""
    a, b = files.folder / "qemu.sock", files.folder / "aiovmm.sock"
    qemu = qemu_command(files, f"unix:{a},server=on,wait=on", qemus, mib=mib)
    return Guest(QEMU, qemu, a), Guest(AIOVMM, aiovmm_command(files, f"socket={b}", ours, mib=mib), b)


def compare(
    row: Result,
    guests: Sequence[Guest],
    measure: Callable[[Guest], float],
    options: Options,
    more: Mapping[str, Source] | None = None,
) -> Result:
    """The row, with rounds of `measure` of all guests in turn. A profile, if asked for, has `more` counters by guest."""
    contestants: dict[str, Callable[[], float]] = {g.name: lambda g=g: measure(g) for g in guests}  # type: ignore[misc]
    if not options.profile:
        return run_rounds(row, contestants, options.rounds)
    profile = Profile()
    for guest in guests:
        contestants[guest.name] = profile.around(
            guest.name, guest.pid, contestants[guest.name], (more or {}).get(guest.name)
        )
    run_rounds(row, contestants, options.rounds)
    row.notes["a second, medians"] = "\n" + profile.table()
    return row
