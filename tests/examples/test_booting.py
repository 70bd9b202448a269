"""The examples that need a kernel, run as their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvmhost, pytest.mark.timeout(240)]
ROOT = Path(__file__).parent.parent.parent


def example(name: str, *arguments: object) -> str:
    """What the example prints; fails the test if it fails."""
    command = [sys.executable, "-m", f"examples.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_boot(images: tuple[Path, Path]) -> None:
    assert re.fullmatch(r"Linux 6\.1\S* x86_64\n", example("boot", *images, "uname -srm"))


def test_custom_device(images: tuple[Path, Path]) -> None:
    assert re.fullmatch(r"[1-6]{20}\n", example("custom_device", *images))


@pytest.mark.thorough
def test_warm_pool(images: tuple[Path, Path]) -> None:
    lines = example("warm_pool", *images).splitlines()
    assert len({line[:23] for line in lines}) == 8
    assert all(re.match(r"([0-9a-f]{2} ){8}  warm-\d+, after", line) for line in lines)


def test_disk_and_network(images: tuple[Path, Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    assert "3 packets received" in example("disk_and_network", *images, disk)
    note = subprocess.run(["debugfs", "-R", "cat /note", disk], capture_output=True, text=True, check=True)
    assert note.stdout == "written by the guest\n"


def test_demo_shows_every_device_alive() -> None:
    shown = example("demo", "--here", "--script")
    for line in (
        "disk: 64 MiB, mounted",
        "network: the host answers",
        "entropy: virtio_rng",
        "socket: the host has heard of guest 6.1.",
        "console: hvc0",
        "demo: on hvc0 arrived: hello from hvc0",
    ):
        assert line in shown
    assert "demo: the guest ended: shutdown" in shown
