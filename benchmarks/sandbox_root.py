"""What is in each guest that is compared: busybox, as a directory and as an OCI layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from aiovmm.architecture import host
from benchmarks.place import GUESTS

__all__ = ["DATA", "make"]

DATA = "/data"
"""A directory that files are copied to."""
_EMPTY = ("bin", "data", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var")
_OCI = "application/vnd.oci.image"


def make(folder: Path) -> None:
    """`root` and `layout` in it."""
    root, layout = folder / "root", folder / "layout"
    for name in _EMPTY:
        (root / name).mkdir(parents=True)
    shutil.copy(GUESTS / "bin/busybox", root / "bin/busybox")
    for applet in subprocess.check_output([GUESTS / "bin/busybox", "--list"], text=True).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(root, ".")
    _write_layout(layout, packed.getvalue())


def _write_layout(layout: Path, layer: bytes) -> None:
    """Of one layer. Source: OCI image-spec 1.0."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    platform = {"os": "linux", "architecture": host().debian}
    about = {**platform, "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}}
    about["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _blob(layout, json.dumps(about).encode(), "config.v1+json"),
        "layers": [_blob(layout, gzip.compress(layer), "layer.v1.tar+gzip")],
    }
    one = {**_blob(layout, json.dumps(manifest).encode(), "manifest.v1+json"), "platform": platform}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [one]}))


def _blob(layout: Path, data: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}
