"""A process that has given up paths: in one of its own, which says what it still could open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.config import (
    ConsoleConfig,
    ConsoleMode,
    DebugConsoleConfig,
    DiskConfig,
    PayloadConfig,
    PmemConfig,
    VMConfig,
    VsockConfig,
)
from aiovmm.config.landlock import LandlockRuleConfig
from aiovmm.confine.landlock import known_rights
from aiovmm.confine.paths import KEEP, READ, WRITE, Right, of_config, of_rule
from aiovmm.errors import ConfigError
from aiovmm.native import lib
from tests.confine.tried import TRIED

needs_landlock = pytest.mark.skipif(lib.avmm_landlock_version() < 0, reason="this kernel has no Landlock")


def test_each_file_of_a_configuration_is_granted_as_it_is_used() -> None:
    config = VMConfig(
        PayloadConfig(Path("/k/vmlinuz"), Path("/k/initrd")),
        disks=(DiskConfig(path=Path("/d/rw.img")), DiskConfig(path=Path("/d/ro.img"), readonly=True)),
        pmems=(PmemConfig(file=Path("/d/pmem")),),
        vsock=VsockConfig(cid=3, socket=Path("/run/vsock")),
        serial=ConsoleConfig(ConsoleMode.FILE, Path("/logs/serial")),
        debug_console=DebugConsoleConfig(ConsoleMode.SOCKET, Path("/debug/socket")),
    )
    granted = {str(grant.path): grant.rights for grant in of_config(config)}
    assert granted.pop("/dev/urandom") == READ
    assert granted == {
        "/k/vmlinuz": READ,
        "/k/initrd": READ,
        "/d/rw.img": WRITE,
        "/d/ro.img": READ,
        "/d/pmem": WRITE,
        "/run": KEEP,
        "/logs/serial": WRITE,
        "/debug": KEEP,
    }


@given(st.text(max_size=3) | st.text("rwx", max_size=3))
def test_access_is_read_or_write_or_both(access: str) -> None:
    if access in ("r", "w", "rw", "wr", "rr", "ww"):
        rights = of_rule(LandlockRuleConfig(path=Path("/x"), access=access)).rights
        assert bool(rights & Right.READ_FILE) == ("r" in access)
        assert bool(rights & Right.WRITE_FILE) == bool(rights & Right.MAKE_REG) == ("w" in access)
    else:
        with pytest.raises(ConfigError, match=r"landlock_rules\.access"):
            LandlockRuleConfig(path=Path("/x"), access=access)


def test_an_older_kernel_is_asked_for_what_it_knows() -> None:
    assert known_rights(1) == Right((1 << 13) - 1)
    assert known_rights(2) == Right((1 << 14) - 1)
    assert known_rights(4) == Right((1 << 15) - 1)
    assert known_rights(7) == Right((1 << 16) - 1)


PROGRAM = (
    TRIED
    + """
import os, sys
from pathlib import Path
from aiovmm.confine.landlock import confine_paths
from aiovmm.confine.paths import KEEP, READ, Grant

inside, outside, readable = map(Path, sys.argv[1:])
held = os.open(outside / "held", os.O_RDWR | os.O_CREAT)
confine_paths([Grant(inside, KEEP), Grant(readable, READ), Grant(Path("/not/there"), READ)])

tried("make inside", lambda: (inside / "new").write_text("x"))
tried("move inside", lambda: (inside / "new").rename(inside / "moved"))
tried("remove inside", (inside / "moved").unlink)
tried("read", lambda: (readable / "file").read_text())
tried("write what is to be read", lambda: (readable / "file").write_text(""))
tried("read outside", lambda: (outside / "held").read_text())
tried("make outside", lambda: (outside / "new").write_text(""))
tried("remove outside", (outside / "held").unlink)
tried("move out", lambda: (readable / "file").rename(outside / "file"))
tried("what is open", lambda: os.write(held, b"x"))
tried("passwords", lambda: open("/etc/shadow").read())
tried("signal another", lambda: os.kill(os.getppid(), 0))
tried("signal itself", lambda: os.kill(os.getpid(), 0))
"""
)


@needs_landlock
def test_what_is_not_granted_cannot_be_opened(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("inside", "outside", "readable")]
    for place in places:
        place.mkdir()
    (tmp_path / "readable/file").write_text("kept")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, places)], capture_output=True, text=True, timeout=60
    )
    refused = os.strerror(13)
    assert done.stderr == ""
    assert dict(line.split(": ") for line in done.stdout.splitlines()) == {
        **dict.fromkeys(("make inside", "move inside", "remove inside", "read", "what is open"), "done"),
        **dict.fromkeys(("write what is to be read", "read outside", "make outside", "remove outside"), refused),
        **dict.fromkeys(("move out", "passwords"), refused),
        "signal another": os.strerror(1) if lib.avmm_landlock_version() >= 6 else "done",
        "signal itself": "done",
    }
    assert (tmp_path / "readable/file").read_text() == "kept"


@needs_landlock
def test_threads_that_would_go_on_as_they_are_make_it_an_error() -> None:
    program = (
        "import threading, time\n"
        "from aiovmm.confine.landlock import confine_paths\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "try:\n"
        "    confine_paths([])\n"
        "except Exception as exc:\n"
        "    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "landlock: this process has threads already, which could not be confined\n", done.stderr
