"""The nested host's QEMU process: started as a daemon that outlives its starter, found again, and ended."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import time

from . import tsc
from .command import BootFiles, machine_name, qemu_command
from .errors import HostLost, MissingTool
from .image import Image
from .initramfs import build
from .qemu import Qemu
from .settings import Profile, Size
from .tools import missing_tools, run_tools

_STOP_SECONDS = 10.0
_CRASH = re.compile(r"Kernel panic|BUG:|Oops|Out of memory|kvmhost:")


class Machine:
    """The process of one profile, by way of its directory: pid, sockets, console log and what it was started with."""

    def __init__(self, directory: pathlib.Path, profile: Profile) -> None:
        self.directory = directory
        self.profile = profile

    @property
    def socket(self) -> pathlib.Path:
        return self.directory / "agent.sock"

    @property
    def console_log(self) -> pathlib.Path:
        return self.directory / "console.log"

    def pid(self) -> int | None:
        """The process id, if the process runs."""
        try:
            pid = int((self.directory / "pid").read_text())
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if machine_name(self.profile).encode() in command else None

    def started_with(self) -> dict[str, object]:
        """What the running process was made of, and its size; empty if unknown."""
        try:
            facts: dict[str, object] = json.loads((self.directory / "started.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return facts

    def start(self, image: Image, qemu: Qemu, size: Size) -> None:
        """Start the process; it boots on its own. MissingTool, HostLost with QEMU's words if it does not start."""
        missing = missing_tools(run_tools(self.profile.arch))
        if missing:
            raise MissingTool(missing)
        self._clear()
        (self.directory / "initramfs").write_bytes(build(image.boot, self.profile))
        for disk in self.profile.disks:
            with open(self.directory / disk.name, "wb") as file:
                file.truncate(disk.size)
        command = self._command(image, qemu, size, tsc.kernel_argument(self.profile.arch.name))
        facts = {
            "made_of": self.made_of(image, qemu, size),
            "cpus": size.cpus,
            "memory": size.memory,
            "command": command,
        }
        (self.directory / "started.json").write_text(json.dumps(facts, indent=1))
        # TMPDIR: the unnamed file of the disk's changes lies beside the image, not in a small /tmp.
        env = {**os.environ, **qemu.environment, "TMPDIR": str(self.directory)}
        result = subprocess.run(
            command, cwd=self.directory, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if result.returncode:
            raise HostLost(f"QEMU did not start (status {result.returncode}): {result.stderr.strip()}")

    def _command(self, image: Image, qemu: Qemu, size: Size, measured: str = "") -> list[str]:
        files = BootFiles(image.kernel, self.directory / "initramfs", image.disk)
        return qemu_command(qemu, self.profile, size, files, measured)

    def made_of(self, image: Image, qemu: Qemu, size: Size) -> str:
        """Digest of all that a host started now would be: image, initramfs with agent, QEMU's command line."""
        parts = hashlib.sha256(json.dumps(self._command(image, qemu, size)).encode())
        parts.update(build(image.boot, self.profile))
        return parts.hexdigest()[:16]

    def _clear(self) -> None:
        """Nothing of an earlier run; the lock stays."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def stop(self) -> bool:
        """End the process; False if none ran. Nothing it holds is worth a clean end: its disk changes go with it."""
        pid = self.pid()
        if pid is None:
            return False
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            if not select.select([handle], [], [], _STOP_SECONDS)[0]:
                raise HostLost(f"process {pid} does not end")
        finally:
            os.close(handle)
        return True

    def come_first(self) -> bool:
        """Its processors run before whatever is not real-time here: it boots guests in two thirds of the time even on an idle
        machine, and everything else waits. False without the privilege (CAP_SYS_NICE)."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):  # later ones inherit it
                os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            return False
        return True

    def last_words(self, lines: int = 12) -> str:
        """The end of the console log, after the lines that name a crash of its kernel."""
        try:
            text = self.console_log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no console log)"
        crash = [line for line in text[:-lines] if _CRASH.search(line)]
        return "\n".join(crash[-5:] + text[-lines:]) or "(the console log is empty)"

    def age(self) -> float:
        """Seconds since it was started."""
        return time.time() - (self.directory / "started.json").stat().st_mtime
