"""Files, sockets and directories that somebody has named are looked up, made and removed by threads: a path may lead to where
storage stands still, and then that is the guest's affair whose it is, and not everybody's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANGS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.kvm

PROGRAM = """
import asyncio, os, sys, threading
from pathlib import Path
from aiovmm import VM, ConsoleConfig, ConsoleMode, DiskConfig, NetConfig, PmemConfig, RngConfig, VsockConfig
from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from tests.vm.guest import config

place, loops, watches = Path(sys.argv[1]), threading.main_thread(), False
NAMES = "open os.remove os.rename os.mkdir os.rmdir os.listdir os.scandir os.link os.symlink os.chmod os.truncate socket.bind"

def looks_up(event, given):
    if watches and event in NAMES.split() and threading.current_thread() is loops and str(place) in repr(given):
        print(event, *given, flush=True)

async def main():
    global watches
    for name in ("disk", "pmem", "rng"):
        (place / name).write_bytes(bytes(2 << 20))
    watches = True
    given = config(
        "ho",
        serial=ConsoleConfig(ConsoleMode.SOCKET, place / "s"),
        console=ConsoleConfig(ConsoleMode.FILE, place / "c"),
        vsock=VsockConfig(socket=place / "v"),
        disks=(DiskConfig(path=place / "disk"),),
        pmems=(PmemConfig(file=place / "pmem"),),
        rng=RngConfig(src=place / "rng"),
    )
    async with VM(given) as vm:
        await vm.start()
        await vm.wait()
        assert (place / "s").exists() and (place / "v").exists() and (place / "c").exists()
    assert not (place / "s").exists() and not (place / "v").exists()
    async with VM(config("x")) as vm:
        await vm.start()
        await vm.snapshot(place / "whole", track=True)
        await vm.snapshot(place / "more", base=place / "whole")
    async with VM.restore(place / "more") as vm:
        await vm.resume()
    back_end = VM(config("h", nets=(NetConfig(vhost_user=True, socket=place / "n", vhost_mode="server"),)))
    entering = asyncio.ensure_future(back_end.__aenter__())
    while not (place / "n").exists():
        await asyncio.sleep(0.01)
    entering.cancel()
    await asyncio.wait([entering])
    assert not (place / "n").exists()
    agent = Agent(UnixPlace(sys.argv[2]))
    for ends in (lambda: agent.forwards.end(place / "f"), lambda: asyncio.sleep(0, agent.close())):
        await agent.forwards.to_guest(80, place / "f", "")
        await ends()
    while (place / "f").exists():
        await asyncio.sleep(0.01)
    watches = False

config("hx")  # it is assembled before
sys.addaudithook(looks_up)
asyncio.run(main())
"""


def test_nothing_that_somebody_has_named_is_looked_up_on_the_loop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "agent")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=2 * HANGS, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
