"""Images as `docker save`, `podman save` and skopeo's docker-archive write them."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from aiovmm import Image, ImageError
from aiovmm.architecture import host
from aiovmm.rootfs import Limits
from aiovmm.rootfs.kinds import kind_of
from tests.limits import HANGS
from tests.rootfs.conftest import Member, archive, directory, file, hardlink, needs_erofs, symlink
from tests.rootfs.test_image import LAYERS, Layout, extracted, needs_root

FILES = {"d": None, "d/b": b"2", "d/c": b"3"}
"""What LAYERS make."""


def configuration(*layers: bytes, **said: Any) -> bytes:
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {"Env": ["PATH=/bin"], "Cmd": ["-x"], "Entrypoint": ["/d/b"], "User": "7:8", "WorkingDir": "/d"}
    document = {"architecture": host().debian, "os": "linux", "config": config, "rootfs": {"diff_ids": digests}}
    return json.dumps({**document, **said}).encode()


def saved(path: Path, *images: tuple[list[str], tuple[bytes, ...], bytes]) -> Path:
    """Of (names, layers, configuration), as Docker has done it: a layer has a directory, one that is there already a link; the
    manifest comes last."""
    members: list[Member] = []
    manifest, there = [], dict[bytes, str]()
    for names, layers, config in images:
        places = []
        for number, layer in enumerate(layers):
            folder = hashlib.sha256(layer + bytes([number, len(there)])).hexdigest()
            members += [directory(folder), file(f"{folder}/VERSION", b"1.0")]
            if layer in there:
                members.append(symlink(f"{folder}/layer.tar", f"../{there[layer]}"))
            else:
                members.append(file(f"{folder}/layer.tar", layer))
                there[layer] = f"{folder}/layer.tar"
            places.append(f"{folder}/layer.tar")
        called = f"{hashlib.sha256(config).hexdigest()}.json"
        members.append(file(called, config))
        manifest.append({"Config": called, "RepoTags": names or None, "Layers": places})
    path.write_bytes(
        archive(*members, file("manifest.json", json.dumps(manifest).encode()), file("repositories", b"{}"))
    )
    return path


@needs_erofs
@needs_root
@pytest.mark.parametrize("how", ["archive", "as it is", "directory"])
async def test_an_image_that_was_saved(tmp_path: Path, how: str) -> None:
    path = saved(tmp_path / "saved.tar", (["x:1"], LAYERS, configuration(*LAYERS)))
    cache = tmp_path / "cache"
    if how == "directory":
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "saved", filter="data")
        path = tmp_path / "saved"
    if how == "as it is":
        assert kind_of(path) == "oci"
    built = await Image.from_oci(path, cache=cache).build()
    assert {name: entry[4] for name, entry in extracted(built.path, tmp_path / "out").items()} == FILES
    assert (built.config.command, built.config.user, built.config.workdir) == (("/d/b", "-x"), "7:8", "/d")
    assert built.config.env == {"PATH": "/bin"}


@needs_erofs
@needs_root
@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not here")
async def test_an_archive_that_skopeo_makes_is_the_image_that_it_was(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.add(*LAYERS, Cmd=["a"])["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    layout.write()
    path = tmp_path / "archive.tar"
    command = ["skopeo", "--insecure-policy", "copy", f"oci:{layout.path}:v1", f"docker-archive:{path}:name/of:it"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: ASYNC221 - nothing else goes on here
    assert kind_of(path) == "oci"
    cache = tmp_path / "cache"
    theirs = await Image.from_oci(path, tag="name/of:it", cache=cache).build()
    ours = await Image.from_oci(layout.path, cache=cache).build()
    assert theirs.config.command == ours.config.command == ("a",)
    assert theirs.digest == ours.digest


@pytest.mark.parametrize(
    ("tag", "user"),
    [
        *(("debian", "7:8"), ("12", "7:8"), ("debian:12", "7:8"), ("docker.io/library/debian:12", "7:8")),
        *(("host:5000/other", "9"), ("other:3", "9"), ("host:5000/other:3", "9"), ("3", "9")),
    ],
)
async def test_one_of_several_by_any_of_its_names(tmp_path: Path, tag: str, user: str) -> None:
    """They share a layer, which is a link in the second."""
    first = configuration(LAYERS[0])
    second = configuration(*LAYERS, config={"User": "9"})
    names = ["docker.io/library/debian:12"], ["host:5000/other:3"]
    path = saved(tmp_path / "saved.tar", (names[0], LAYERS[:1], first), (names[1], LAYERS, second))
    built = await Image.from_oci(path, tag=tag, cache=tmp_path / "cache").build()
    assert built.config.user == user


async def refused(path: Path, cache: Path, tag: str | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        await Image.from_oci(path, tag=tag, cache=cache / "cache").build()
    return str(caught.value)


async def test_which_one_has_to_be_said_by_a_name_that_there_is(tmp_path: Path) -> None:
    images: Any = (["a:1"], LAYERS[:1], configuration(LAYERS[0])), ([], LAYERS, configuration(*LAYERS))
    path = saved(tmp_path / "saved.tar", *images)
    assert "say which by tag= (a:1)" in await refused(path, tmp_path)
    assert "is not named 'b'; there are a:1" in await refused(path, tmp_path, "b")


async def test_each_layer_is_what_the_configuration_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved.tar", ([], LAYERS, configuration(LAYERS[0], LAYERS[0])))
    assert "is not what the configuration says" in await refused(path, tmp_path)
    path = saved(tmp_path / "saved.tar", ([], LAYERS, configuration(LAYERS[0])))
    assert "has 2 layers, and its configuration tells of 1" in await refused(path, tmp_path)
    path = saved(tmp_path / "saved.tar", ([], LAYERS, configuration(*LAYERS, architecture="mips")))
    assert "is for mips" in await refused(path, tmp_path)
    path = saved(tmp_path / "saved.tar", ([], (b"no tar",), configuration(b"no tar")))
    assert "cannot be unpacked" in await refused(path, tmp_path)


_MANIFESTS: list[Any] = [
    *(b"", b"{", b"[]", b"{}", b"[1]", b"[" * 100000, b'[{"Config": 5, "Layers": []}]', b'[{"Config": "c"}]'),
    *(b'[{"Config": "c", "Layers": [5]}]', b'[{"Config": "no", "Layers": []}]', b'[{"Config": "c", "Layers": ["no"]}]'),
    *(b'[{"Config": "loop", "Layers": []}]', b'[{"Config": "out", "Layers": []}]', b'[{"Config": "", "Layers": []}]'),
    *(b'[{"Config": "manifest.json", "Layers": []}]', b'[{"Config": "../secret", "Layers": []}]'),
    *(b'[{"Config": "/etc/hostname", "Layers": []}]', b'[{"Config": "c", "Layers": ["../secret"]}]'),
]


@pytest.mark.parametrize("manifest", _MANIFESTS, ids=lambda data: repr(data[:60]))
@pytest.mark.parametrize("unpacked", [False, True], ids=["archive", "directory"])
async def test_a_hostile_manifest_is_an_error_and_leads_nowhere_else(
    tmp_path: Path, manifest: bytes, unpacked: bool
) -> None:
    (tmp_path / "secret").write_bytes(configuration())
    members: list[Any] = [symlink("loop", "loop"), hardlink("out", "../secret"), file("c", configuration(LAYERS[0]))]
    path = tmp_path / "saved.tar"
    path.write_bytes(archive(*members, file("manifest.json", manifest)))
    if unpacked:
        path = tmp_path / "saved"
        path.mkdir()
        (path / "loop").symlink_to("loop")
        (path / "c").write_bytes(configuration(LAYERS[0]))
        (path / "manifest.json").write_bytes(manifest)
    said = await refused(path, tmp_path)
    assert said.startswith(str(path))
    assert not list((tmp_path / "cache").glob("content/*"))


_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@needs_erofs
@needs_root
@pytest.mark.parametrize("how", list(_PACKERS))
async def test_one_that_is_packed(tmp_path: Path, how: str) -> None:
    """Which of its images is wanted is a part of what it is found again by."""
    first, second = configuration(*LAYERS), configuration(LAYERS[1])
    path = saved(tmp_path / "saved.tar", (["x:1"], LAYERS, first), (["y:1"], LAYERS[1:], second))
    packed, cache = tmp_path / f"saved.tar.{how}", tmp_path / "cache"
    packed.write_bytes(_PACKERS[how](path.read_bytes()))
    assert kind_of(packed) == "oci"
    await _until_settled(packed)
    built = await Image.from_oci(packed, tag="x", cache=cache).build()
    assert {name: entry[4] for name, entry in extracted(built.path, tmp_path / "out").items()} == FILES
    assert (built.config.command, built.config.user) == (("/d/b", "-x"), "7:8")
    other = await Image.from_oci(packed, tag="y", cache=cache).build()
    assert other.digest != built.digest
    again = await Image.from_oci(packed, tag="x", cache=cache).build()
    assert again.digest == built.digest
    assert len(list((cache / "sources").iterdir())) == 2
    assert list((cache / "making").iterdir()) == []


async def _until_settled(path: Path) -> None:
    """What was written just now might be written again, and have the same time."""
    written = os.stat(path).st_ctime_ns
    async with asyncio.timeout(HANGS):
        while time.time_ns() - written < 2_100_000_000:  # noqa: ASYNC110 - the clock's
            await asyncio.sleep(0.1)


async def test_one_that_unpacks_to_more_than_it_may(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved.tar", ([], LAYERS, configuration(*LAYERS)))
    packed = tmp_path / "saved.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + bytes(32 << 20)))
    with pytest.raises(ImageError, match="is more than 16778304 bytes when it is unpacked"):
        await Image.from_oci(packed, cache=tmp_path / "cache", limits=Limits(size=1024)).build()


async def test_one_that_is_packed_and_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved.tar", ([], LAYERS, configuration(*LAYERS)))
    packed = tmp_path / "saved.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes())[:-100])
    assert "cannot be unpacked" in await refused(packed, tmp_path)
