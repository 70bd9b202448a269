"""A command line of the reference monitor's, run here: whether its guest runs, or what is said instead.

`@name` in a line is a file in a directory of its own: raw, raw2, pm (sparse), empty, odd (not whole sectors), `comma,name`,
adir/, q.qcow2, b.qcow2 (backed by q.qcow2), v.vhd, v.vhdx, exists.sock, file.sock (no socket); any other is not there.
Each runs in a network of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEADLINE", "Line", "Outcome", "images", "read_table", "run_line"]

TABLE = Path(__file__).with_name("reference_lines.tsv")
DEADLINE = 50.0
MIB = 1 << 20
_IMAGES = (("qcow2", "q.qcow2"), ("vpc", "v.vhd"), ("vhdx", "v.vhdx"))
_ENVIRONMENT = dict(os.environ)  # lines run in threads, while pytest changes a variable for each test


@dataclass(frozen=True)
class Line:
    """What the reference did with `text`, and what is done with it here: "runs", "refused", "ends with 0", or "waits": says for
    whom."""

    text: str
    reference: str
    here: str


@dataclass(frozen=True)
class Outcome:
    """`kind` as in Line.here, or how it went wrong; `said` is the last line on standard error."""

    kind: str
    said: str


def read_table() -> list[Line]:
    """All lines, in their order."""
    rows = (row.split("\t") for row in TABLE.read_text().splitlines() if row and not row.startswith("#"))
    return [Line(text, reference, here) for text, reference, here in rows]


def images(directory: Path) -> None:
    """The image files, made once."""
    for form, name in _IMAGES:
        subprocess.run(["qemu-img", "create", "-q", "-f", form, name, "16M"], cwd=directory, check=True)
    backed = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "q.qcow2", "-F", "qcow2", "b.qcow2"]
    subprocess.run(backed, cwd=directory, check=True)


def _furnish(directory: Path, made: Path) -> None:
    shutil.copytree(made, directory)
    (directory / "adir").mkdir()
    sizes = {"raw": 16 * MIB, "raw2": 16 * MIB, "pm": 32 * MIB, "empty": 0, "odd": 16 * MIB + 777, "comma,name": MIB}
    for name, size in sizes.items():
        with (directory / name).open("wb") as file:
            file.truncate(size)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "exists.sock"))
    (directory / "file.sock").write_text("x")


def run_line(text: str, directory: Path, made: Path, kernel: Path) -> Outcome:
    """In `directory`, which is made, with the images of `made`; until its guest runs, or it ends."""
    _furnish(directory, made)
    args = shlex.split(re.sub(r"@(?=[a-z])", f"{directory}/", text))
    if not {"--kernel", "--firmware"} & set(args):
        args = ["--kernel", str(kernel), *args]
    if not any(arg.split("=")[0] in ("--serial", "--console") for arg in args):
        args = ["--serial", "tty", "--console", "off", *args]
    events = directory / "ev"
    if "--event-monitor" not in args:
        args += ["--event-monitor", f"path={events}"]
    with (directory / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-m", "aiovmm", "run", *args],
            cwd=directory,
            env={**_ENVIRONMENT, "XDG_CACHE_HOME": str(directory / "cache"), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    return _outcome(process, events, directory)


def _outcome(process: subprocess.Popen[bytes], events: Path, directory: Path) -> Outcome:
    deadline = time.monotonic() + DEADLINE
    errors = directory / "stderr"
    while process.poll() is None and time.monotonic() < deadline and not (_booted(events) or _waits(errors)):
        time.sleep(0.01)
    runs = _booted(events)  # and may have ended since
    late = process.poll() is None and not runs
    process.kill()
    process.wait()
    error = errors.read_text(errors="replace").replace(str(directory), "@").strip()
    said = error.splitlines()[-1] if error else ""
    if late:
        return Outcome("waits" if _waits(errors) else "hangs", said)
    if runs:
        return Outcome("runs", said)
    if "Traceback" in error or process.returncode not in (0, 1, 2):
        return Outcome("breaks", error)
    if process.returncode == 0:
        return Outcome("ends with 0", said)
    return Outcome("refused" if said else "refused without a word", said)


def _booted(events: Path) -> bool:
    return events.exists() and '"booted"' in events.read_text()


def _waits(errors: Path) -> bool:
    return b"waits for its back end" in errors.read_bytes()
