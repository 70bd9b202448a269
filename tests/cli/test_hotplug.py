"""`aiovmm add`, `aiovmm remove` and `aiovmm resize`, each a process of its own, of a guest that another has."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovmm.cli.confinement import Confinement
from aiovmm.cli.control import _done
from aiovmm.machine.architecture import board_of_host
from tests.cli.waiting import TIME, until
from tests.guests import build_kernel

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers"),
]
AIOVMM = (sys.executable, "-m", "aiovmm")


def ask(*words: str | Path, cwd: Path) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    done = subprocess.run(
        [*AIOVMM, *map(str, words)], cwd=cwd, capture_output=True, timeout=TIME, check=False, text=True
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def guest(cwd: Path, does: str, *more: str) -> Iterator[Callable[[], str]]:
    """A guest with a control socket in `cwd`; the function gives what it has printed."""
    small = () if "--memory" in more else ("--memory", "64M")
    words = ("run", "--kernel", build_kernel("kernel"), "--cmdline", does, *small, *more)
    places = ("--serial", "file=printed", "--control-socket", "control")
    with subprocess.Popen([*AIOVMM, *map(str, (*words, *places))], cwd=cwd, stderr=subprocess.DEVNULL) as monitor:
        try:
            until((cwd / "control").exists)
            yield lambda: (cwd / "printed").read_text()
            assert monitor.poll() is None, "the guest runs on"
        finally:
            monitor.kill()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_console_comes_to_a_place_and_goes(tmp_path: Path) -> None:
    with guest(tmp_path, "s", "--console", "off"):
        socket = tmp_path / "hvc0"
        assert ask("add", "control", "--console", "socket=hvc0", "--timeout", "0", cwd=tmp_path) == (
            0,
            "console\n",
            f"aiovmm: console is at {socket}\n",
        )
        assert socket.is_socket()
        code, _, said = ask("add", "control", "--console", "tty", cwd=tmp_path)
        assert (code, "is there already" in said) == (2, True)
        assert ask("remove", "control", "console", "--force", "--timeout", "0.1", cwd=tmp_path)[0] == 0
        assert not socket.exists()
        code, _, said = ask("add", "control", "--console", "tty", cwd=tmp_path)
        assert (code, "later is not tty (pty, socket=PATH" in said) == (2, True)


def test_devices_come_and_go(tmp_path: Path, image: Path) -> None:
    """The guest looks at what comes, and lets go of what is to go; paths are those of who asks."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with guest(tmp_path, "P") as printed:
        added = ask(
            "add", "../control", "--disk", f"path=../{image.name},serial=late", "--rtc", "id=clock", cwd=elsewhere
        )
        assert added == (0, "disk0\nclock\n", "")
        until(lambda: printed() == "+d+e")  # after hvc0 and the source of entropy
        assert ask("remove", "control", "disk0", cwd=tmp_path) == (0, "", "")
        until(lambda: printed() == "+d+e-")
        assert ask("add", "control", "--disk", f"path={image},id=my disk,readonly=on", cwd=tmp_path) == (
            0,
            "my disk\n",
            "",
        )
        assert ask("remove", "control", "my disk", cwd=tmp_path) == (0, "", "")
        assert ask("add", "control", "--disk", f"path={image},pci_device_id=9", cwd=tmp_path) == (0, "disk0\n", "")
        until(lambda: printed() == "+d+e-+d-+j")


def test_a_guest_that_does_not_heed_it(tmp_path: Path, image: Path) -> None:
    with guest(tmp_path, "i") as _:
        code, out, error = ask("add", "control", "--disk", f"path={image}", "--timeout", "0.1", cwd=tmp_path)
        assert (code, out, error.count("\n")) == (1, "", 1)
        assert "the guest has not looked at it" in error
        code, _, error = ask("remove", "control", "rng", "--timeout", "0.1", cwd=tmp_path)
        assert (code, error.count("\n")) == (1, 1)
        assert "the guest has not let go of it" in error
        assert ask("remove", "control", "rng", "--timeout", "0.1", "--force", cwd=tmp_path) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("add", "control"), 2, "names no device, like --disk path=IMAGE"),
        (("add", "control", "--disk", "path=missing"), 1, "missing"),
        (("add", "control", "--disk", "colour=red"), 2, "disk.colour: is not known"),
        (("add", "control", "--net", "fd=3"), 2, "net.fd: is a descriptor of another process"),
        (("add", "control", "--device", "fd=3"), 2, "device.fd: is a descriptor of another process"),
        (("add", "control", "--device", "path=missing"), 1, ": {here}/missing"),
        (("add", "control", "--device", "path=ffff:1f:1f.7"), 1, "`lspci -D` lists them): ffff:1f:1f.7"),
        (("add", "control", "--rng", "src=/dev/urandom"), 2, "rng: is there already"),
        (("remove", "control", "disk7"), 2, "has no device 'disk7'; there are: "),
        (("resize", "control"), 2, "takes --cpus, --memory, or both"),
        (("resize", "control", "--cpus", "2"), 2, "none comes or goes: say CpusConfig(max=)"),
        (("resize", "control", "--memory", "1X"), 2, "--memory: '1X' is not a size"),
        (("resize", "control", "--memory", "1G"), 2, "hotplug_size"),
        (("add", "none", "--rtc", ""), 1, "aiovmm run --control-socket PATH"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    with guest(tmp_path, "i"):
        got, out, error = ask(*words, cwd=tmp_path)
        assert (got, out, error.count("\n")) == (code, "", 1), error
        assert said.format(here=tmp_path) in error


def test_processors_and_memory(tmp_path: Path) -> None:
    """Of a guest that heeds nothing: virtio-mem's, which is asked, need not be waited for."""
    memory = ("--memory", "size=64M,hotplug_size=512M,hotplug_method=virtio-mem")
    with guest(tmp_path, "i", "--cpus", "boot=1,max=4", *memory):
        assert ask("resize", "control", "--memory", "128M", "--timeout", "0", cwd=tmp_path) == (0, "", "")
        code, _, error = ask("resize", "control", "--cpus", "2", "--timeout", "0.1", cwd=tmp_path)
        assert (code, error.count("\n")) == (1, 1)
        assert re.search(r"within 0\.[01]\d* s", error), "what was left of it then"
        code, _, error = ask("resize", "control", "--cpus", "5", cwd=tmp_path)
        assert code == 2
        assert "it can have 1 to 4 processors" in error


def test_a_monitor_that_is_confined_says_what_would_let_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside, inside = (tmp_path_factory.mktemp(name) / "disk.img" for name in ("outside", "inside"))
    for path in (outside, inside):
        path.write_bytes(bytes(1 << 20))
    with guest(tmp_path, "P", "--landlock", "--landlock-rules", f"path={inside.parent},access=rw"):
        code, _, error = ask("add", "control", "--disk", f"path={outside}", cwd=tmp_path)
        assert (code, error.count("\n")) == (1, 1), error
        assert "--landlock-rules path=DIR,access=rw" in error
        assert ask("add", "control", "--disk", f"path={inside}", cwd=tmp_path) == (0, "disk0\n", "")
        code, _, error = ask("add", "control", "--net", "", cwd=tmp_path)
        assert (code, error.count("\n")) == (1, 1), error
        assert "--seccomp false" in error


async def test_what_the_host_refuses_is_told_to_who_asked() -> None:
    """And not taken for the caller's having left, which would read as the monitor's end."""

    class Full:
        async def remove(self, id_: str, **_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    vm: Any = Full()
    answer = await _done(vm, Confinement(), b'{"do": "remove", "id": "disk0", "timeout": 1}')
    assert answer == {"error": "[Errno 28] No space left on device", "code": 1}
