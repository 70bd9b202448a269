"""The device tree compiler, as a reader of blobs that knows what trees must look like."""

from __future__ import annotations

import subprocess


def decompile(blob: bytes) -> str:
    """Its source. AssertionError with what dtc says of it, be it an error or a warning."""
    try:
        done = subprocess.run(["dtc", "-I", "dtb", "-O", "dts"], input=blob, capture_output=True, timeout=60)
    except FileNotFoundError:
        raise AssertionError("there is no dtc: apt-get install device-tree-compiler, or tools/setup test") from None
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return done.stdout.decode()
