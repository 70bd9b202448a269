"""What all guests of a user boot from is no guest's to write: a process that has given up paths only reads the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiovmm.native import lib
from tests.boot.images import bzimage, elf, payload
from tests.confine.tried import TRIED

PROGRAM = (
    TRIED
    + """
import sys
from pathlib import Path
from aiovmm import PayloadConfig, VMConfig
from aiovmm.boot import load_kernel
from aiovmm.confine import guests

how, kernel, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
getattr(guests, how)(VMConfig(PayloadConfig(kernel)), [], option="it")

(unpacked,) = cache.glob("kernels/*.vmlinux")
print(load_kernel(kernel).source.path == str(unpacked))
tried("image", lambda: (cache / "images/base.erofs").write_text("another"))
tried("kernel", lambda: unpacked.write_bytes(b"another"))
tried("another kernel", lambda: (cache / "kernels/0.json").write_text(""))
tried("remove", unpacked.unlink)
tried("replace", lambda: (cache / "images/base.erofs").rename(cache / "images/another"))
"""
)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            "confine_paths_to",
            marks=pytest.mark.skipif(lib.avmm_landlock_version() < 0, reason="this kernel has no Landlock"),
        ),
        pytest.param(
            "enter_namespaces_of",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or unprivileged user namespaces"),
        ),
    ],
)
def test_kernels_and_images_of_others_are_only_read(how: str, tmp_path: Path) -> None:
    kernel, cache = tmp_path / "vmlinuz", tmp_path / "cache/aiovmm"
    kernel.write_bytes(bzimage(payload(elf(), "gzip")))
    (cache / "images").mkdir(parents=True)
    (cache / "images/base.erofs").write_text("another guest's")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM, how, str(kernel), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == ""
    kept, *told = done.stdout.splitlines()
    assert kept == "True"
    assert len(told) == 5
    assert all(not line.endswith("done") for line in told), told
