"""Images made by public tools (umoci, skopeo), and a real registry on the loopback that they come from."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiovmm import HostError, Image, ImageError, UsageError
from aiovmm.rootfs.cache import Cache
from aiovmm.rootfs.limits import Limits
from aiovmm.rootfs.registry import Reference, _policy
from tests.limits import HANGS
from tests.rootfs.simulated_registry import SimulatedRegistry
from tests.rootfs.test_image import extracted

SECRET = "me:$2y$04$fk5iAob3K60XJKpAVWN7xuvqWw8bi2A8b/bjCXYZcsWg0MGDBTI9C\n"
"""A line of htpasswd: the password is "token"."""
SMALL = Limits(size=1 << 20)

needs_tools = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("umoci", "skopeo", "docker-registry", "fsck.erofs")) or os.geteuid() != 0,
    reason="umoci, skopeo, docker-registry and erofs-utils are not all here, or we are not root",
)


def umoci(*words: str | Path) -> None:
    subprocess.run(["umoci", *words], check=True, capture_output=True)


def test_a_user_without_a_home_has_no_policy_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("aiovmm.rootfs.registry._POLICIES", ("/nowhere/policy.json", "~/policy.json"))
    assert _policy() == ["--insecure-policy"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of umoci: three layers, of which the second replaces, removes and links, and the third is a whiteout."""
    folder = tmp_path_factory.mktemp("umoci")
    path, bundle = folder / "layout", folder / "bundle"
    umoci("init", "--layout", path)
    umoci("new", "--image", f"{path}:v1")
    umoci("unpack", "--image", f"{path}:v1", bundle)
    root = bundle / "rootfs"
    for name in ("etc", "usr/bin", "gone"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "usr/bin/tool").write_bytes(os.urandom(100_000))
    (root / "gone/file").write_text("x")
    os.chown(root / "usr/bin/tool", 12, 34)
    (root / "bin").symlink_to("usr/bin")
    umoci("repack", "--image", f"{path}:v1", bundle)
    shutil.rmtree(bundle)
    umoci("unpack", "--image", f"{path}:v1", bundle)
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").write_text("other\n")
    (root / "usr/bin/other").hardlink_to(root / "usr/bin/tool")
    shutil.rmtree(root / "gone")
    umoci("repack", "--image", f"{path}:v1", bundle)
    umoci(
        *(
            "config",
            "--image",
            f"{path}:v1",
            "--config.env",
            "A=b",
            "--config.user",
            "7",
            "--config.workingdir",
            "/etc",
        ),
        *("--config.entrypoint", "/usr/bin/tool", "--config.cmd", "-x"),
    )
    return path


@needs_tools
async def test_an_image_made_by_umoci(layout: Path, tmp_path: Path) -> None:
    image = await Image.from_oci(layout, cache=tmp_path / "cache").build()
    assert (image.config.env["A"], image.config.user, image.config.workdir) == ("b", "7", "/etc")
    assert image.config.command == ("/usr/bin/tool", "-x")
    found = extracted(image.path, tmp_path / "out")
    assert set(found) == {"etc", "etc/passwd", "usr", "usr/bin", "usr/bin/tool", "usr/bin/other", "bin"}
    assert found["etc/passwd"][4] == b"other\n"
    assert found["usr/bin/tool"][1:5] == found["usr/bin/other"][1:5]
    assert found["usr/bin/tool"][1:3] == (12, 34)
    assert found["bin"][4] == "usr/bin"


@needs_tools
async def test_an_archive_made_by_skopeo(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    archive = tmp_path / "image.tar"
    command = ["skopeo", "--insecure-policy", "copy", f"oci:{layout}:v1", f"oci-archive:{archive}:v1"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0
    assert tarfile.is_tarfile(archive)
    one = await Image.of(archive).build()
    two = await Image.from_oci(layout, cache=tmp_path / "cache").build()
    assert one.digest == two.digest


class Registry:
    """Debian's docker-registry, at a port of the loopback."""

    def __init__(self, folder: Path, secret: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.place = f"127.0.0.1:{probe.getsockname()[1]}"
        text = (
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{self.place}'}}\n"
        )
        if secret:
            (folder / "htpasswd").write_text(secret)
            text += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        (folder / "config.yml").write_text(text + "log: {level: error, accesslog: {disabled: true}}\n")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while socket.socket().connect_ex(("127.0.0.1", int(self.place.rpartition(":")[2]))):
            assert self._process.poll() is None

    def push(self, layout: Path, *options: str) -> None:
        command = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", *options]
        subprocess.run([*command, f"oci:{layout}:v1", f"docker://{self.place}/box:v1"], check=True, capture_output=True)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path_factory.mktemp("registry"))
    registry.push(layout)
    yield registry
    registry.stop()


@needs_tools
async def test_a_registry_is_asked_once(registry: Registry, layout: Path, tmp_path: Path) -> None:
    name, cache = f"{registry.place}/box:v1", tmp_path / "cache"
    image = Image.from_docker_registry(name, tls_verify=False, cache=cache)
    built = await image.build()
    assert built.config.user == "7"
    assert built.digest == (await Image.from_oci(layout, cache=tmp_path / "other").build()).digest
    assert list((cache / "layouts").iterdir()) == []
    never = Image.from_docker_registry(name, pull="never", cache=cache)
    assert (await never.build()).digest == built.digest
    with pytest.raises(ImageError, match="is not here, and is not to be copied"):
        await Image.from_docker_registry(f"{registry.place}/other", pull="never", cache=cache).build()


@needs_tools
async def test_what_a_registry_does_not_have(registry: Registry, tmp_path: Path) -> None:
    image = Image.from_docker_registry(f"{registry.place}/box:v9", tls_verify=False, cache=tmp_path)
    with pytest.raises(ImageError, match=r"box:v9: cannot be copied: .*manifest unknown"):
        await image.build()


@needs_tools
async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="connection refused"):
        await Image.from_docker_registry("127.0.0.1:1/box", tls_verify=False, cache=tmp_path).build()


async def test_without_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt-get install skopeo"):
        await Image.from_docker_registry("box", cache=tmp_path / "cache").build()


@needs_tools
async def test_a_cache_whose_name_has_a_colon(registry: Registry, tmp_path: Path) -> None:
    image = Image.from_docker_registry(f"{registry.place}/box:v1", tls_verify=False, cache=tmp_path / "a:b")
    assert (await image.build()).config.user == "7"
    assert os.listdir(tmp_path) == ["a:b"]


@needs_tools
async def test_without_setpriv(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/skopeo").symlink_to(shutil.which("skopeo") or "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    image = Image.from_docker_registry(f"{registry.place}/box:v1", tls_verify=False, cache=tmp_path / "cache")
    assert (await image.build()).config.user == "7"


@pytest.mark.parametrize("name", ["", "-x", "--all", "a b", "a\nb", "$(x)"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="no name of an image"):
        Image.from_docker_registry(name)


@pytest.mark.parametrize(("username", "word"), [("a:b", "colon"), ("a\ud800", "surrogates"), ("", "together")])
def test_what_is_no_user(username: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Reference("debian", username, "secret")


def test_a_user_named_by_bytes() -> None:
    assert Reference("debian", os.fsdecode(b"a\xff"), "b").credentials() == b"a\xff:b"


def test_the_host_of_a_name() -> None:
    names = ("debian", "team/image:1", "localhost/x", "registry.example:5000/a/b@sha256:0")
    assert [Reference(name).host for name in names] == ["docker.io", "docker.io", "localhost", "registry.example:5000"]


def test_a_tag_beside_a_digest_says_nothing() -> None:
    names = (
        "debian",
        "debian:12",
        "host:5000/x",
        "host:5000/x@sha256:0",
        "host:5000/x:1@sha256:0",
        "debian:12@sha256:0",
    )
    assert [Reference(name).source for name in names] == [*names[:4], "host:5000/x@sha256:0", "debian@sha256:0"]


@needs_tools
async def test_a_name_with_tag_and_digest(registry: Registry, layout: Path, tmp_path: Path) -> None:
    """As those have it who pin what they use."""
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    image = Image.from_docker_registry(f"{registry.place}/box:v1@{digest}", tls_verify=False, cache=tmp_path)
    assert (await image.build()).config.user == "7"


@needs_tools
async def test_a_registry_that_wants_a_password(layout: Path, tmp_path: Path) -> None:
    registry = await asyncio.get_running_loop().run_in_executor(None, Registry, tmp_path, SECRET)
    try:
        await asyncio.get_running_loop().run_in_executor(None, registry.push, layout, "--dest-creds=me:token")
        name = f"{registry.place}/box:v1"
        image = Image.from_docker_registry(
            name, username="me", password="token", tls_verify=False, cache=tmp_path / "cache"
        )
        assert (await image.build()).config.user == "7"
        with pytest.raises(ImageError, match=r"authentication required|unauthorized"):
            await Image.from_docker_registry(name, tls_verify=False, cache=tmp_path / "other").build()
    finally:
        registry.stop()


@needs_tools
@pytest.mark.parametrize("ways", [("redirect",), ("token",), ("password",), ("redirect", "password")])
async def test_ways_of_registries(layout: Path, tmp_path: Path, ways: tuple[str, ...]) -> None:
    who = {"username": "me", "password": "secret"} if "password" in ways else {}
    with SimulatedRegistry(layout, *ways).serving() as place:
        image = Image.from_docker_registry(f"{place}/box", tls_verify=False, cache=tmp_path / "cache", **who)
        built = await image.build()
    assert built.digest == (await Image.from_oci(layout, cache=tmp_path / "other").build()).digest


@needs_tools
@pytest.mark.parametrize(
    ("ways", "reason"),
    [
        (("wrong",), "Digest did not match"),
        (("wrong", "redirect"), "Digest did not match"),
        (("cut",), "EOF"),
        (("password",), "(unauthorized|authentication required)"),
        (("endless",), "it is larger than it may be"),
    ],
)
async def test_what_a_registry_does_wrong_leaves_nothing(
    layout: Path, tmp_path: Path, ways: tuple[str, ...], reason: str
) -> None:
    with (
        SimulatedRegistry(layout, *ways).serving() as place,
        pytest.raises(ImageError, match=f"{place}/box: cannot be copied: .*{reason}"),
    ):
        await Image.from_docker_registry(f"{place}/box", tls_verify=False, cache=tmp_path, limits=SMALL).build()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"] == []  # noqa: ASYNC240


BUILD = """import asyncio, sys; from aiovmm import Image
image = Image.from_docker_registry(sys.argv[1], username="me", password="secret", tls_verify=False, cache=sys.argv[2])
asyncio.run(image.build())"""


@needs_tools
def test_a_copy_whose_program_is_killed_ends_and_leaves_no_password_and_nothing_to_the_next(
    layout: Path, tmp_path: Path
) -> None:
    """Nobody else knows how much may come of a registry that sends without end."""
    with SimulatedRegistry(layout, "password", "endless").serving() as place:
        builder = subprocess.Popen([sys.executable, "-c", BUILD, f"{place}/box", tmp_path])
        try:
            wait_until(lambda: any(path.stat().st_size > 1 << 20 for path in tmp_path.glob("layouts/*/layout/*")))
            [skopeo] = Path(f"/proc/{builder.pid}/task/{builder.pid}/children").read_text().split()
            assert list(tmp_path.rglob("auth.json")) == []
        finally:
            builder.kill()
            builder.wait()
        wait_until(lambda: not running(skopeo))
    assert list(tmp_path.glob("layouts/*"))
    Cache(tmp_path).begin_layout().close()
    assert list(tmp_path.glob("layouts/*")) == []


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + HANGS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def running(pid: str) -> bool:
    """And no zombie that its new parent has not asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_no_file_is_looked_for_on_the_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A policy may be in a home that is on a server, and a program in a PATH that is."""
    skopeo = tmp_path / "skopeo"
    skopeo.write_text("#!/bin/sh\necho no such thing >&2; exit 1\n")
    skopeo.chmod(0o755)
    looked: list[threading.Thread] = []

    def look(_name: str) -> str:
        looked.append(threading.current_thread())
        return str(skopeo)

    monkeypatch.setattr("shutil.which", look)
    monkeypatch.setattr("os.path.expanduser", look)
    with pytest.raises(ImageError, match="no such thing"):
        await Image.from_docker_registry("host.example/x", cache=tmp_path / "cache").build()
    assert looked
    assert threading.main_thread() not in looked


def test_the_password_is_not_shown() -> None:
    assert repr(Reference("host/x", username="me", password="secret")) == "Reference('host/x', username='me')"
