"""`aiovmm` as a process of its own, with bare-metal guests on the machine's /dev/kvm where a guest is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from tests.guests import build_kernel
from tests.limits import HANGS


class Command:
    """Starts `aiovmm` with arguments; ends what still runs when the test is over."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """A process with pipes for all three streams, unless `options` say otherwise."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**os.environ, "XDG_CACHE_HOME": str(self._directory / "cache"), "NO_COLOR": "1"}
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "aiovmm", *arguments],
            cwd=self._directory,
            **{"env": environment, **pipes, **options},
        )
        self._running.append(process)
        return process

    def run(self, *arguments: str, stdin: bytes = b"", timeout: float = HANGS) -> subprocess.CompletedProcess[bytes]:
        """Run to the end."""
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def end(self) -> None:
        """Kill what is left."""
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def aiovmm(tmp_path: Path) -> Iterator[Command]:
    """The command."""
    command = Command(tmp_path)
    yield command
    command.end()


@pytest.fixture(scope="session")
def kvm() -> bool:
    """Whether this KVM emulates guest kernel code. Skips where there is none."""
    try:
        with Kvm.open() as opened:
            return opened.emulates_guest_code()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")


@pytest.fixture
def guest(kvm: bool) -> list[str]:
    """Arguments of `run` for a small bare-metal guest; append --cmdline."""
    return ["run", "--kernel", str(build_kernel()), "--memory", "4M", "--rng", "src=/dev/urandom"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "kvm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kvm)
