"""Files that are input: a snapshot's state, an overlay's header, disk formats, documents and layers of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiovmm.config import DiskConfig, NetConfig, PayloadConfig, VMConfig
from aiovmm.devices.virtio.blk.overlay.header import Header, newest
from aiovmm.devices.virtio.formats import format_of
from aiovmm.devices.virtio.qcow2 import parse_header
from aiovmm.errors import AiovmmError
from aiovmm.rootfs.documents import DocumentError, parse_configuration, parse_manifest, select_manifest, select_saved
from aiovmm.rootfs.tar import TarError, TarReader
from aiovmm.snapshot.configuration import from_state, to_state
from aiovmm.snapshot.document import decode, encode
from tests.fuzz.source import Source, refused

_CONFIG = VMConfig(
    PayloadConfig(Path("/kernel"), None, "cmdline"), disks=(DiskConfig(path=Path("/disk")),), nets=(NetConfig(tap="t"),)
)
_STATE = encode({"config": to_state(_CONFIG), "bytes": b"abc"})
_BODY = _STATE[_STATE.index(b'",') :]
_DIGEST = "sha256:" + "0" * 64
_MANIFEST = {"config": {"mediaType": "x", "digest": _DIGEST, "size": 1}, "layers": []}
SEEDS = [
    b"\0" + _BODY,
    b"\1" + bytes(4096),
    b"\2" + b"QFI\xfb" + bytes(100),
    b"\3" + b"QFI\xfb\0\0\0\3" + bytes(100),
    b"\4" + json.dumps(_MANIFEST).encode(),
    b"\5" + json.dumps({"config": {"Env": ["A=B"]}, "rootfs": {"diff_ids": [_DIGEST]}}).encode(),
    b"\6" + json.dumps({"manifests": [_MANIFEST["config"]]}).encode(),
    b"\7" + b"name".ljust(100, b"\0") + b"0000644\0" + bytes(404),
]


def _snapshot(body: bytes) -> None:
    """With a checksum that is right: whoever can write the one can write the other."""
    state = decode(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + body)
    config = state.get("config")
    if isinstance(config, dict):
        from_state(config)


def _overlay(data: bytes) -> None:
    for read in (partial(Header.parse, data, "x"), partial(newest, data, "x")):
        with refused(AiovmmError, saying="x"):
            read()


def _tar(data: bytes) -> None:
    source = Source(data)
    reader = TarReader(source.take)
    for _member in reader:
        for _piece in reader.content():
            pass


_READERS: list[Callable[[bytes], object]] = [
    _snapshot,
    _overlay,
    lambda data: format_of(data[:512], data[-512:]),
    lambda data: parse_header(data, "x"),
    parse_manifest,
    parse_configuration,
    lambda data: select_manifest(data, "amd64", None),
    lambda data: select_saved(data, None),
    lambda data: select_saved(data, "a:1"),
    _tar,
]


def run(data: bytes) -> None:
    source = Source(data)
    reader = source.one(_READERS)
    with refused(AiovmmError, DocumentError, TarError):
        reader(source.rest())
