"""`aiovmm run` as it gives up system calls and paths, with a stock kernel on every device that it has of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS
from tests.system.shown import CONSOLE

SIZE = 8 << 20
RUN = r"""
sha256sum /dev/vda | head -c 64; echo " read"
dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null; sha256sum /dev/vdb | head -c 64; echo " written"
head -c 16 /dev/hwrng | wc -c
ip link set eth0 up; ip address add 192.168.77.2/24 dev eth0; ping -c 1 -W 5 192.168.77.1 | grep -c "1 packets received"
"""


@pytest.mark.parametrize("landlock", [False, True], ids=["calls", "calls-and-paths"])
def test_all_devices_work_and_nothing_is_in_the_log(landlock: bool, tmp_path: Path) -> None:
    image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / "6.1/modules", run=RUN)
    (tmp_path / "initramfs").write_bytes(image.data)
    content = os.urandom(SIZE)
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "target").write_bytes(bytes(SIZE))
    (tmp_path / "pmem").write_bytes(bytes(2 << 20))
    done = subprocess.run(
        [
            *("aiovmm", "run", "--kernel", GUESTS / "6.1/vmlinuz", "--initramfs", tmp_path / "initramfs"),
            *("--cmdline", f"console={CONSOLE} panic=-1 quiet", "--memory", "256M", "--cpus", "2"),
            *("--disk", f"path={tmp_path}/source,readonly=on", f"path={tmp_path}/target,image_type=raw"),
            *("--pmem", f"file={tmp_path}/pmem", "--vsock", f"cid=3,socket={tmp_path}/vsock"),
            *("--net", "ip=192.168.77.1,mask=255.255.255.0", "--console", f"socket={tmp_path}/hvc0"),
            *(["--landlock"] if landlock else []),
        ],
        capture_output=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    digest = hashlib.sha256(content).hexdigest()
    lines = done.stdout.decode(errors="replace").partition("run begin")[2].split()
    assert [digest, "read", digest, "written", "16", "1"] == lines[:6], (done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert b"not permitted" not in done.stderr.lower(), done.stderr
    assert (tmp_path / "target").read_bytes() == content
